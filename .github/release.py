"""What a release adds to the repository: `python .github/release.py TAG` on the runner that publishes.

It refuses a tag that is not the version of pyproject.toml, or a version without a section in the changelog, and prints
that section. Into pyproject.toml it writes what depends on who publishes: the publisher and the repository's addresses.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(tag: str, repository: str, publisher: str, root: Path = ROOT) -> str:
    """The changes of the version that `tag` names. Raises ValueError where tag, version and changelog disagree."""
    project = root / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+?)"', text, re.M)[1]
    if tag != f"v{version}":
        raise ValueError(f"The tag is {tag} and the version {version}: tag v{version}, or change pyproject.toml.")
    if not publisher:
        raise ValueError(
            "There is no publisher: set the repository's variable COMFY_PUBLISHER to your id in the registry."
        )
    sections = re.split(r"^## \[(.+?)\].*$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    changes = dict(zip(sections[1::2], sections[2::2], strict=True)).get(version, "").strip()
    if not changes:
        raise ValueError(f"CHANGELOG.md has no section for {version}.")
    project.write_text(with_addresses(text, repository, publisher, tag), encoding="utf-8")
    return changes


def with_addresses(text: str, repository: str, publisher: str, tag: str) -> str:
    """pyproject.toml with what the registry shows."""
    images = f"{repository}/raw/{tag}/docs/images"
    urls = {
        "Repository": repository,
        "Issues": f"{repository}/issues",
        "Documentation": f"{repository}/tree/{tag}/docs",
    }
    shown = {"PublisherId": publisher, "Icon": f"{images}/icon.png", "Banner": f"{images}/banner.png"}
    table = "\n".join(f'{name} = "{value}"' for name, value in urls.items())
    comfy = "\n".join(f'{name} = "{value}"' for name, value in shown.items())
    return text.replace("[tool.comfy]\n", f"[project.urls]\n{table}\n\n[tool.comfy]\n{comfy}\n", 1)


if __name__ == "__main__":
    try:
        address = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
        print(main(sys.argv[1], address, os.environ.get("COMFY_PUBLISHER", "")))
    except ValueError as error:
        sys.exit(f"release: {error}")
