"""`dev.py bench decode`: anonymous memory of decoding 81 and 161 frames, streamed to images, to a video, and by ComfyUI.

Random Wan 2.1 VAEs: a narrow one (2 channels), and one of the real width (96) on smaller frames."""

import argparse
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from .memory import GB, MemoryWatch

# channels of the decoder's last layer, latent side, frames
NARROW, FULL = (2, 16, (81, 161)), (96, 2, (21, 41))
HOWS = ("images", "video", "stock")
MB = 1e6
# What may differ between two lengths besides the frames: the allocator's own, and the file buffers of the encoder.
SLACK = 8 * MB


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench decode", description=__doc__.splitlines()[0])
    parser.add_argument("--narrow-only", action="store_true", help="leave out the VAE of the real width")
    parser.add_argument("--measure", nargs=4, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        how, *numbers = options.measure
        print(json.dumps(measure(how, *map(int, numbers))))
        return 0
    print(
        "| VAE channels | frame | frames | decoded by | result | peak anonymous memory | without the result | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    within = True
    for dim, side, lengths in (NARROW,) if options.narrow_only else (NARROW, FULL):
        for how in HOWS:
            rest = []
            for frames in lengths:
                row = measured(how, dim, side, frames)
                rest.append(row["peak"] - row["result"])
                print(
                    f"| {dim} | {side * 8}x{side * 8} | {frames} | {how} | {row['result'] / MB:.1f} MB | {row['peak'] / MB:.1f} MB | "
                    f"{rest[-1] / MB:.1f} MB | {row['seconds']:.0f} |",
                    flush=True,
                )
            within &= how == "stock" or rest[1] - rest[0] < SLACK
    return 0 if within else 1


def measured(how: str, *numbers: int) -> dict:
    """`measure` in a process of its own."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "decode", "--measure", how, *map(str, numbers)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure(how: str, dim: int, side: int, frames: int) -> dict:
    """Seconds, and peak anonymous memory above the start and the result's part of it in bytes."""
    from td_pack.tests.support.host import load_host

    load_host()
    import comfy.sd
    import torch
    from td_pack.tests.support.checkpoints import vae_state_dict
    from td_pack.turbo_core.host.decode import decode_images, stock_decode
    from td_pack.turbo_core.host.decode_video import decode_video

    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-", ignore_cleanup_errors=True) as folder:
        run = {
            "images": decode_images,
            "stock": stock_decode,
            "video": lambda vae, z: decode_video(vae, z, Fraction(16), Path(folder))[1],
        }[how]
        vae = comfy.sd.VAE(sd=vae_state_dict(dim=dim))
        with torch.inference_mode():
            latent = torch.randn(1, 16, (frames + 3) // 4, side, side, generator=torch.Generator().manual_seed(0))
            with MemoryWatch() as watch:
                result = run(vae, latent)
        in_memory = 0 if how == "video" else result.untyped_storage().nbytes()
    return {"seconds": watch.seconds, "peak": watch.anonymous * GB, "result": in_memory}
