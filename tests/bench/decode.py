"""`dev.py bench decode`: anonymous memory of decoding 81 and 161 frames, streamed to images, to a video, and by
ComfyUI.

Random Wan 2.1 VAEs: a narrow one (8 channels), and one of the real width (96) on smaller frames."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

from .memory import GB, resident

# channels of the decoder's last layer, latent side, frames
NARROW, FULL = (8, 16, (81, 161)), (96, 4, (81, 161))
HOWS = ("images", "video", "stock")
MB = 1e6
# What may differ between two lengths besides the frames: the allocator's own, and the file buffers of the encoder.
SLACK = 3 * MB
# Tensors get pages of their own and give them back at once: without this the peak depends on what the heap has left
# over.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench decode", description=__doc__)
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
                    f"| {dim} | {side * 8}x{side * 8} | {frames} | {how} | {row['result'] / MB:.1f} MB | "
                    f"{row['peak'] / MB:.1f} MB | "
                    f"{rest[-1] / MB:.1f} MB | {row['seconds']:.0f} |",
                    flush=True,
                )
            within &= how == "stock" or rest[1] - rest[0] < SLACK
    return 0 if within else 1


def measured(how: str, *numbers: int) -> dict:
    """Runs `measure` in a new process."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "decode", "--measure", how, *map(str, numbers)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ALLOCATOR).stdout
    return json.loads(said.splitlines()[-1])


def measure(how: str, dim: int, side: int, frames: int) -> dict:
    """Seconds, and peak anonymous memory above the start and the result's part of it in bytes."""
    from td_pack.tests.support.host import load_host

    load_host()
    import comfy.sd
    import torch
    from td_pack.nodes.decode import encode_mp4
    from td_pack.tests.support.checkpoints import vae_state_dict
    from td_pack.turbo_core.host.decode import decode_images, stock_decode
    from td_pack.turbo_core.host.decode_video import decode_video

    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-", ignore_cleanup_errors=True) as folder:
        run = {
            "images": decode_images,
            "stock": stock_decode,
            "video": lambda vae, z: decode_video(vae, z, Path(folder), partial(encode_mp4, frame_rate=Fraction(16)))[1],
        }[how]
        vae = comfy.sd.VAE(sd=vae_state_dict(dim=dim))
        with torch.inference_mode():
            latent = torch.randn(1, 16, (frames + 3) // 4, side, side, generator=torch.Generator().manual_seed(0))
            before, start = resident(), time.perf_counter()
            # The kernel's own high-water mark, from here on: sampling misses the peaks of a busy machine.
            Path("/proc/self/clear_refs").write_text("5")
            result = run(vae, latent)
            seconds, after = time.perf_counter() - start, resident()
        # File-backed pages (libraries, the frames of a video) only grow, and are all there at the end.
        peak = (high_water() - before["RssAnon"] - after["RssFile"]) * GB
        in_memory = 0 if how == "video" else result.untyped_storage().nbytes()
    return {"seconds": seconds, "peak": peak, "result": in_memory}


def high_water() -> float:
    """The most that was resident, of any kind, in GB (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / GB
