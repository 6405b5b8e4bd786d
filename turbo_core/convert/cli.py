"""`cli.py convert`: the TurboDiffusionConvert node as a command."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..errors import TurboError
from . import output
from .codec import WEIGHTS
from .convert import Request, convert

EXAMPLES = """\
examples:
  python cli.py convert TurboWan2.1-T2V-14B-720P-quant.pth T2V-14B.safetensors
                                  int8 as it is, in a file that loads faster
  python cli.py convert TurboWan2.1-T2V-14B-720P.pth styled.safetensors --weights int8_block --lora style.safetensors
                                  a LoRA merged into the bf16 weights, then int8
  python cli.py convert tuned.safetensors fast.safetensors --base turbo.safetensors --teacher wan.safetensors
                                  what a fine-tune of Wan changed, added to a distilled model
"""


def main(arguments: list[str]) -> int:
    """Runs the command; 0, or 1 after an error whose sentence goes to stderr."""
    options = _parser().parse_args(arguments)
    try:
        target = options.target.parent / output.check_name(options.target.name)
        request = Request(
            model=options.source,
            output=target,
            weights=options.weights,
            overwrite=options.overwrite,
            lora=options.lora,
            lora_strength=options.lora_strength,
            base=options.base,
            teacher=options.teacher,
            delta=options.delta,
        )
        with tqdm(unit="B", unit_scale=True, disable=None) as bar:
            report = convert(request, lambda stage, done, total: _show(bar, stage, done, total))
    except TurboError as error:
        sys.stderr.write(f"convert: {error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


def _show(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.total = total
    bar.set_description(stage, refresh=False)
    bar.update(done - bar.n)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cli.py convert",
        description="Writes a checkpoint anew as one safetensors file that ComfyUI maps into memory, with the\n"
        "weights you choose.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="a .pth or .safetensors checkpoint")
    parser.add_argument("target", type=Path, metavar="DST", help="the new file; .safetensors is added if it is missing")
    parser.add_argument("--weights", choices=WEIGHTS, default="keep", help="how the blocks' linears are stored (keep)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    parser.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA to merge")
    parser.add_argument("--lora-strength", type=float, default=1.0, metavar="X", help="of the LoRA (1)")
    parser.add_argument("--base", type=Path, metavar="FILE", help="write BASE + X * (SRC - TEACHER) instead of SRC")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="the model that SRC was made from")
    parser.add_argument("--delta", type=float, default=1.0, metavar="X", help="weight of the difference (1)")
    return parser
