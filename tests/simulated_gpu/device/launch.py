"""`python launch.py SCRIPT ...` or `python launch.py -m MODULE ...` on the simulated devices that the environment sets
(settings.py)."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def prepare() -> None:
    """Makes the devices compute. comfy_kitchen's compiled kernels cannot run on them, and are switched off."""
    sys.path.insert(0, str(ROOT))
    import cli

    cli.load_pack()  # which removes the root from sys.path
    from td_pack.tests.simulated_gpu.device.install import install

    install()
    try:
        import comfy_kitchen
    except ImportError:
        return
    for backend in ("cuda", "triton"):
        comfy_kitchen.registry.disable(backend)


def main(arguments: list[str]) -> None:
    """Runs a script or module as Python would, with `arguments` as its command line."""
    sys.path.pop(0)  # the folder of this file
    prepare()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
