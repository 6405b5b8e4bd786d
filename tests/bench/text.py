"""`dev.py bench text`: a prompt through a full-size random umT5-XXL: ComfyUI's own nodes, TurboDiffusionTextEncode, and
again."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .memory import GB, MemoryWatch

NEEDED = {"fp16": 12.5, "fp8": 7.5}  # GB of disk
ROWS = {
    "stock": "Load CLIP + CLIP Text Encode",
    "first": "TurboDiffusion Text Encode, first run",
    "cached": "TurboDiffusion Text Encode, cached",
}
PROMPT = (
    "A red fox trots through a quiet birch forest just after a heavy snowfall, its breath rising as small clouds. " * 4
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench text", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the file goes for the while (default: the temporary folder)")
    parser.add_argument("--weights", choices=NEEDED, default="fp8", help="the form of the encoder file")
    parser.add_argument("--measure", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        free, needed = shutil.disk_usage(folder).free / GB, NEEDED[options.weights]
        if free < needed:
            print(f"bench text needs {needed} GB of disk and {folder} has {free:.0f}: give another place with --dir.")
            return 1
        rows, equal = run(Path(folder), options.weights)
    print("| | seconds | anonymous memory, peak | anonymous memory, after |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {ROWS[name]} | {row['seconds']:.2f} | {row['anonymous']:.2f} GB | {row['after']:.2f} GB |")
    print(f"\nThe three conditionings are {'equal bit for bit' if equal else 'NOT equal'}.")
    return 0 if equal else 1


def run(folder: Path, weights: str) -> tuple[dict[str, dict], bool]:
    """Measures each row in a new process, and whether all gave the same tensor."""
    import torch
    from td_pack.tests.bench.full_size import write_encoder

    write_encoder(folder / "encoder.safetensors", 1, weights)
    rows = {name: _measured(name, folder) for name in ROWS}
    tensors = [torch.load(folder / f"{name}.pt", weights_only=True) for name in ROWS]
    same = all(torch.equal(tensor.view(torch.int32), tensors[0].view(torch.int32)) for tensor in tensors)
    return rows, same and bool(tensors[0].isfinite().all()) and bool(tensors[0].any())


def _measured(name: str, folder: Path) -> dict:
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "text", "--measure", name, str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def measure(name: str, folder: Path) -> dict:
    """Encodes in this process and keeps the tensor as `name`.pt: seconds, GB of anonymous memory above the start."""
    from td_pack.tests.support.host import load_host

    load_host()
    import comfy.sd
    import torch
    from td_pack.turbo_core.host.text_encode import text_conditioning
    from td_pack.turbo_core.text_cache import TextCache

    path = folder / "encoder.safetensors"

    def stock() -> tuple:
        clip = comfy.sd.load_clip([str(path)], [], comfy.sd.CLIPType.WAN)
        return clip.encode_from_tokens_scheduled(
            clip.tokenize(PROMPT)
        ), clip  # the CLIP lives on in ComfyUI's node cache

    def ours() -> tuple:
        return text_conditioning(path, path.name, PROMPT, [], TextCache(folder / "cache")), None

    with torch.inference_mode(), MemoryWatch() as watch:
        conditioning, kept = stock() if name == "stock" else ours()
    torch.save(conditioning[0][0], folder / f"{name}.pt")
    del kept
    return {"seconds": watch.seconds, "anonymous": watch.anonymous, "after": watch.after}
