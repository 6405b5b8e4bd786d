"""The command line of `cli.py batch`, checked."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from ..errors import TurboError
from .files import is_file
from .manifest import NAME
from .table import MOST_JOBS
from .text import brief

DEFAULT_SERVER = "http://127.0.0.1:8188"
EXAMPLES = """\
examples:
  python cli.py batch jobs.csv --workflow workflows/api/TurboWan2.1-T2V-1.3B-480P.json --out results
                                  every row of the table on the ComfyUI that runs here
  python cli.py batch --workflow w.json --out results --set prompt="a red fox" --seeds 1-20
                                  one prompt with twenty seeds
  python cli.py batch jobs.csv --workflow w.json --out results --server http://a:8188 --server http://b:8188
                                  on two servers
  python cli.py batch --out results --resume
                                  go on after a crash
"""


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The options, with `server` as a list of distinct addresses and `timeout` None for no limit. Raises TurboError."""
    options = _parser().parse_args(arguments)
    if options.ray is None and (options.workers or options.comfyui_args or options.python):
        raise TurboError("--workers, --comfyui-args and --python are for servers that --ray starts; add --ray local.")
    if options.ray is not None and options.server:
        raise TurboError("Give --server or --ray, not both.")
    for name, least in (("workers", 1), ("repeat", 1), ("max_jobs", 1), ("retries", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise TurboError(f"--{name.replace('_', '-')} is {value}: give {least} or more.")
    if not math.isfinite(options.timeout) or options.timeout < 0:
        raise TurboError(f"--timeout is {options.timeout}: give seconds, or 0 for no limit.")
    options.timeout = options.timeout or None
    if options.resume and not is_file(options.out / NAME):
        raise TurboError(f"There is no batch in {options.out} to resume; give its folder with --out.")
    options.server = list(dict.fromkeys(map(_address, options.server or [DEFAULT_SERVER])))
    return options


def _address(server: str) -> str:
    """The address of a server in its one spelling, by which its worker is known. Raises TurboError."""
    scheme, _, rest = server.strip().rpartition("://")
    scheme, rest = scheme.lower() or "http", rest.strip("/")
    if not rest or scheme not in ("http", "https"):
        raise TurboError(f"--server is {brief(repr(server))}: give an address such as {DEFAULT_SERVER}.")
    return f"{scheme}://{rest}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TurboError(f"{message}; --help lists the options.")


def _parser() -> _Parser:
    parser = _Parser(
        prog="cli.py batch",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Runs a workflow in API format once for every row of a table. Columns: prompt, negative, image,\n"
        "seed, width, height, length, topk, or NODE.INPUT with a node's id or title. A second start skips what is "
        "done.",
    )
    add = parser.add_argument
    add(
        "table",
        nargs="?",
        type=Path,
        help="a .csv with a header, or a .jsonl with an object a line (a list in it is a choice)",
    )
    add("--workflow", type=Path, metavar="FILE", help="the workflow in API format")
    add("--out", type=Path, required=True, metavar="DIR", help="where results, manifest and contact sheet go")
    add("--server", action="append", metavar="URL", help=f"a running ComfyUI; may be repeated ({DEFAULT_SERVER})")
    add("--ray", metavar="WHERE", help="start a server per GPU with Ray: local, auto, or a cluster's address")
    add(
        "--workers", type=int, metavar="N", help="how many servers Ray starts (one per GPU; needed where there is none)"
    )
    add("--comfyui-args", metavar="ARGS", help="further arguments of the servers that Ray starts, as one word")
    add("--python", metavar="PATH", help="the Python of those servers (the one that runs the Ray worker)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a value for every row that lacks it")
    add(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="every row once with each value (or a JSON list)",
    )
    add("--seeds", metavar="1-20", help="every row once with each seed")
    add(
        "--max-jobs",
        type=int,
        default=MOST_JOBS,
        metavar="N",
        help=f"the most jobs that a table may make; more are refused ({MOST_JOBS})",
    )
    add("--repeat", type=int, default=1, metavar="N", help="every row N times, each with the next seed")
    add(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a job that failed is tried again, elsewhere if possible (2)",
    )
    add(
        "--timeout",
        type=float,
        default=7200,
        metavar="SECONDS",
        help="the longest an attempt may take; 0: no limit (7200)",
    )
    add("--dry-run", action="store_true", help="check every row against the server and run nothing")
    add("--resume", action="store_true", help="go on with the batch in DIR; table and workflow may be left out")
    add("--json", action="store_true", help="one JSON object a line instead of bars")
    return parser
