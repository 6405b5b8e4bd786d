"""What graphs saved by ComfyUI's editor and the server's /object_info say."""

from collections.abc import Iterator

NOTES = {"Note", "MarkdownNote"}
BYPASSED = 4
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


def specs(inputs: dict) -> Iterator[tuple[str, str, dict]]:
    """(name, type, options) of each input; a V1 combo is written as the list of its options instead of a type."""
    for section in ("required", "optional"):
        for name, (kind, *options) in inputs.get(section, {}).items():
            yield name, "COMBO" if isinstance(kind, list) else kind, options[0] if options else {}
