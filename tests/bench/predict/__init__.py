"""`dev.py bench predict`: seconds a step on GPUs that are not here, predicted from compiled kernels and counted
bytes."""

import argparse
from pathlib import Path

from .gpus import GPUS, PUBLISHED
from .kernels import NOTHING, Time
from .parallel import LINKS, exchange_seconds, largest_share, works
from .step import MODELS, floor, selected_pairs, sparse_branch, step

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "predicted.md"
TOPK = 0.1
_HEAD = """# Predicted speed

**Every number on this page is a prediction, none is measured.** `python dev.py bench predict` writes it, from the
instructions that `tests/kernels/aot_cases/` records of the compiled kernels (`tests/kernels/test_aot.py` checks them),
the makers' rates of the tensor cores and of the memory, and the bytes that each kernel moves. The model: a
multiprocessor's products and the issue of all other instructions of the hottest loop add up (its 8 warps seldom cover
one by the other); a kernel takes that time or the time of its bytes at 80 % of the published bandwidth, whichever is
longer; attention to the text runs at 60 % of the 16-bit rate; embeddings, head, launch gaps and latency that is not
hidden are left out. `dev.py bench kernels` on a GPU refutes or confirms it.

Weights are in TurboDiffusion's int8_block (128x128 tiles), activations in groups of 1 x 128, but for one column:
int8_rowwise has a scale for each output channel, its products are sums of integers over all of K.

`kernels/attention/pv_format.py` chooses the format of sparse attention in mode `auto` from the second table. The floor
is the products of linears and attentions at the published rates, and the bytes of all other kernels.
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench predict", description=__doc__)
    parser.add_argument(
        "--markdown", type=Path, default=PAGE, help="where the page goes (docs/benchmarks/predicted.md)"
    )
    options = parser.parse_args(arguments)
    options.markdown.write_text(page(), encoding="utf-8")
    print(page())
    return 0


def page() -> str:
    parts = [_HEAD, "## A step in seconds, int8 weights, top-k 0.1, predicted\n", _steps()]
    parts += ["## The sparse branch over its time in 16 bits, predicted\n", _formats()]
    parts += ["## Where the time of a step goes, predicted\n", _kinds()]
    parts += ["## Several GPUs (TurboDiffusion Parallel), predicted\n", _several()]
    return "\n".join(parts)


def formats(target: str) -> list[str]:
    """16 bits, then the formats of sage attention that are compiled for a target with its instructions recorded."""
    from ...kernels.aot_cases import sage

    cases = {case.name: case for case in sage.CASES}
    found = [pv for pv in ("fp16", "int8", "fp8") if target in (case := cases[f"sage_attention_{pv}_d128"]).targets
             and case.targets[target].loop]  # fmt: skip
    return ["", *found]


def chosen(target: str) -> str:
    """The format that mode auto takes there."""
    from ....kernels.attention.pv_format import best_format

    return best_format((int(target[3:-1]), int(target[-1])), (3, 6, 0)).name


def _total(times: dict[str, Time]) -> Time:
    total = NOTHING
    for time in times.values():
        total = total + time
    return total


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _steps() -> str:
    rows = []
    for name, model in MODELS.items():
        for gpu_name, gpu in GPUS.items():
            best = chosen(gpu.target)
            sixteen, automatic = (_total(step(gpu, model, TOPK, pv)) for pv in ("", best))
            channel = _total(step(gpu, model, TOPK, best, "int8_rowwise"))
            published = PUBLISHED.get((name, gpu_name))
            rows.append([
                name, gpu_name, f"{sixteen.seconds:.2f}", f"{automatic.seconds:.2f} ({best or '16 bits'})",
                f"{channel.seconds:.2f}", f"{floor(gpu, model, TOPK, best):.2f}",
                "" if published is None else f"{published:.2f}",
                f"{automatic.bytes / 1e9:.0f} GB", str(automatic.launches // model.layers),
            ])  # fmt: skip
    header = [
        "model",
        "GPU",
        "mode sla (16 bits)",
        "mode auto (v in)",
        "the same, int8_rowwise",
        "floor",
        "published by TurboDiffusion (sage)",
    ]
    return _table([*header, "bytes moved", "launches a block"], rows)


def _formats() -> str:
    rows = []
    model = MODELS["T2V 14B 720p"]
    for gpu_name, gpu in GPUS.items():
        times = {pv: sparse_branch(gpu, model, TOPK, pv).seconds for pv in formats(gpu.target)}
        cells = [f"{times[pv] / times['']:.2f}" if pv in times else "" for pv in ("fp16", "int8", "fp8")]
        rows.append([gpu_name, f"{times[''] * 1e3:.1f} ms", *cells, chosen(gpu.target)])
    text = f"One layer of 14B at 720p, {selected_pairs(model, TOPK):,} pairs of a query block and a key block.\n\n"
    return text + _table(["GPU", "16 bits", "fp16", "int8", "fp8", "mode auto"], rows)


def _kinds() -> str:
    rows = []
    for name, model in MODELS.items():
        for gpu_name, gpu in GPUS.items():
            times = step(gpu, model, TOPK, chosen(gpu.target))
            rows.append([name, gpu_name, *(f"{time.seconds:.2f}" for time in times.values())])
    return _table(["model", "GPU", *times], rows)


def _several() -> str:
    rows = []
    for name, model in MODELS.items():
        for link_name, link in LINKS.items():
            gpu = GPUS[link.gpu]
            one = _total(step(gpu, model, TOPK, chosen(gpu.target))).seconds
            cells = [f"{one:.2f}"]
            for ranks in (2, 4, 8):
                if not works(model, ranks):
                    cells.append("-")
                    continue
                exchange = exchange_seconds(gpu, link, model, ranks)
                several = one * largest_share(model, ranks) + exchange
                cells.append(f"{several:.2f} ({one / several:.1f}x, exchange {exchange / several:.0%})")
            rows.append([name, link_name, link.gpu, *cells])
    text = (
        "Seconds a step. Every kernel is divided by the number of GPUs, and the exchanges before and after\n"
        "self-attention are added, hidden behind nothing: their bytes at 80 % of the link's published rate each way\n"
        "(half of that where cards reach each other by way of RAM), the copies that put them in order, and 30 us a\n"
        "collective. A dash: the heads cannot be divided.\n\n"
    )
    return text + _table(["model", "link", "GPU", "1 GPU", "2 GPUs", "4 GPUs", "8 GPUs"], rows)
