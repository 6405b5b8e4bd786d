"""Run by ComfyUI-Manager after it has installed the pack. Installs nothing: reports what is present and what is
missing."""

from pathlib import Path

PACK = Path(__file__).resolve().parent


def main() -> None:
    """Prints the report on this machine, one fact per line."""
    from cli import load_pack

    load_pack()
    from td_pack.turbo_core import environment

    for line in environment.report(environment.find_comfyui(PACK)):
        print(f"TurboDiffusion: {line}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - a report that fails must not look like an installation that failed
        print(f"TurboDiffusion: installed; its report failed ({type(error).__name__}: {error})")
