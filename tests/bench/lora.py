"""`dev.py bench lora`: time and anonymous memory of applying, changing and removing a LoRA on a full-width bf16 expert,
by TurboDiffusionLoRA and by the stock node; and what its side paths cost a step.

The expert has the width of TurboWan2.2-I2V-A14B and `--layers` of its 40 blocks: the stock node makes a second copy of
every weight that it patches, which with all 40 is more than many machines have."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .memory import EXPERT, GB, MemoryWatch

RANKS = (64, 256)
WAYS = {"side path": "TurboDiffusionLoRA", "stock": "LoraLoaderModelOnly"}
TOKENS = 2048  # of the timed layer


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench lora", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    needed = 1 + 0.8 * options.layers
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        free = shutil.disk_usage(folder).free / GB
        if free < needed:
            print(
                f"bench lora needs {needed:.0f} GB of disk and {folder} has {free:.0f}: give another place with --dir."
            )
            return 1
        table(Path(folder), options.layers)
    costs()
    return 0


def table(folder: Path, layers: int) -> None:
    """Prints what each way needs for each change, every way in a process of its own."""
    from td_pack.tests.support.full_size import write_bf16_expert

    expert = write_bf16_expert(folder / "expert.safetensors", 0, **EXPERT | {"layers": layers})
    lora = write_lora(folder / "lora.safetensors", layers, RANKS[0])
    print(f"{expert.stat().st_size / GB:.1f} GB, LoRA of rank {RANKS[0]}: {lora.stat().st_size / GB:.2f} GB\n")
    print("| node | change | seconds | anonymous memory, peak | after |\n|---|---|---|---|---|")
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    for way, node in WAYS.items():
        command = [sys.executable, str(dev), "--here", "bench", "lora", "--measure", way, str(expert), str(lora)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        for change, row in json.loads(answer).items():
            print(f"| {node} | {change} | {row[0]:.2f} | {row[1]:.2f} GB | {row[2]:.2f} GB |")


def measure(way: str, expert: str, lora: str) -> dict[str, tuple[float, float, float]]:
    """Seconds, peak of anonymous memory and what is left of it in GB above the loaded model, by change."""
    from td_pack.tests.support.host import load_host

    load_host()
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    from td_pack.turbo_core.host.load import load_model
    from td_pack.turbo_core.host.lora import with_lora

    tensors = comfy.utils.load_torch_file(lora)
    model = load_model(expert, "bf16")
    comfy.model_management.load_models_gpu([model])

    def patched(strength: float):
        if way == "stock":
            return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]
        return with_lora(model, "lora.safetensors", tensors, strength)[0]

    changes = {"apply": lambda: patched(1.0), "another strength": lambda: patched(0.5), "remove": lambda: model}
    rows, left = {}, 0.0
    for change, make in changes.items():
        with MemoryWatch() as watch:
            used = make()
            comfy.model_management.load_models_gpu([used])
        rows[change] = (watch.seconds, left + watch.anonymous, left + watch.after)
        left += watch.after
    return rows


def write_lora(path: Path, layers: int, rank: int) -> Path:
    """A bf16 LoRA of every linear of the blocks."""
    import torch
    from td_pack.tests.support import checkpoints
    from td_pack.tests.support.full_size import write

    entries = {}
    for key, shape in checkpoints.shapes(sla=True, **EXPERT | {"layers": layers}).items():
        if key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2:
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            entries[f"{name}.lora_A.weight"] = (torch.bfloat16, (rank, shape[1]))
            entries[f"{name}.lora_B.weight"] = (torch.bfloat16, (shape[0], rank))
    return write(path, 1, entries)


def costs() -> None:
    """Prints, for each rank and kind of layer, the multiplications that a side path adds, counted, and the time of a
    float32 layer with one over its time without, on this CPU (the least of five runs of each, alternating)."""
    import torch

    print(f"\n| layer | rank | multiplications | time, {TOKENS} tokens on this CPU |\n|---|---|---|---|")
    for width, out in ((EXPERT["dim"], EXPERT["dim"]), (EXPERT["dim"], EXPERT["ffn_dim"])):
        x, weight = torch.randn(TOKENS, width), torch.randn(out, width)
        for rank in RANKS:
            down, up = torch.randn(rank, width), torch.randn(out, rank)
            plain, beside = [], []
            for _ in range(5):
                start = time.perf_counter()
                y = x @ weight.T
                middle = time.perf_counter()
                y = x @ weight.T
                y = y + (x @ down.T) @ up.T
                beside.append(time.perf_counter() - middle)
                plain.append(middle - start)
            share = rank * (width + out) / (width * out)
            print(f"| {width} x {out} | {rank} | +{share:.1%} | x{min(beside) / min(plain):.2f} |")
