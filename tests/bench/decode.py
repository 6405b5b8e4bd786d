"""`dev.py bench decode`: anonymous memory of decoding 81 and 161 frames, streamed to images, to a video, and by
ComfyUI.

Random VAEs: a Wan 2.1 VAE that is narrow (8 channels), one of the real width (96) on smaller frames, and a TAEHV,
which has one width. The last line says how many times as fast the TAEHV decodes as the Wan VAE of the real width, and
ours as ComfyUI's. `--traffic` counts what the two move through memory for a chunk, and computes nothing."""

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

# VAE, latent side
NARROW, FULL, SMALL = ("Wan 8", 16), ("Wan 96", 4), ("TAEHV", 4)
LENGTHS = (81, 161)  # frames
HOWS = ("images", "video", "stock")
MB = 1e6
# What may differ between two lengths besides the frames: the allocator's own, and the file buffers of the encoder.
SLACK = 3 * MB
# Tensors get pages of their own and give them back at once: without this the peak depends on what the heap has left
# over.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench decode", description=__doc__)
    parser.add_argument("--narrow-only", action="store_true", help="leave out the VAEs of the real width")
    parser.add_argument("--speed-only", action="store_true", help="nothing but the last line")
    parser.add_argument("--traffic", action="store_true", help="bytes and launches of a chunk, counted")
    parser.add_argument("--measure", nargs=4, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        how, vae, *numbers = options.measure
        print(json.dumps(measure(how, vae, *map(int, numbers))))
        return 0
    if options.traffic:
        print(traffic())
        return 0
    if options.speed_only:
        print(speed())
        return 0
    print("| VAE | frame | frames | decoded by | result | peak anonymous memory | without the result | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    within = True
    for vae, side in (NARROW,) if options.narrow_only else (NARROW, FULL, SMALL):
        for how in HOWS:
            rest = []
            for frames in LENGTHS:
                row = measured(how, vae, side, frames)
                rest.append(row["peak"] - row["result"])
                print(
                    f"| {vae} | {side * 8}x{side * 8} | {frames} | {how} | {row['result'] / MB:.1f} MB | "
                    f"{row['peak'] / MB:.1f} MB | "
                    f"{rest[-1] / MB:.1f} MB | {row['seconds']:.1f} |",
                    flush=True,
                )
            within &= how == "stock" or rest[1] - rest[0] < SLACK
    if not options.narrow_only:
        print(speed())
    return 0 if within else 1


def measured(how: str, vae: str, *numbers: int) -> dict:
    """Runs `measure` in a new process."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "decode", "--measure", how, vae, *map(str, numbers)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ALLOCATOR).stdout
    return json.loads(said.splitlines()[-1])


def measure(how: str, vae_name: str, side: int, frames: int) -> dict:
    """Seconds, and peak anonymous memory above the start and the result's part of it in bytes."""
    from td_pack.tests.support.host import load_host

    load_host()
    import torch
    from td_pack.nodes.decode import encode_mp4
    from td_pack.turbo_core.host.decode import decode_images, stock_decode
    from td_pack.turbo_core.host.decode_video import decode_video

    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-", ignore_cleanup_errors=True) as folder:
        run = {
            "images": decode_images,
            "stock": stock_decode,
            "video": lambda vae, z: decode_video(vae, z, Path(folder), partial(encode_mp4, frame_rate=Fraction(16)))[1],
        }[how]
        vae = made(vae_name)
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


def traffic() -> str:
    """The table of `--traffic`: GB, and launches in brackets."""
    from td_pack.tests.support.host import load_host

    load_host()
    from td_pack.tests.support.traffic import decoder_traffic

    lines = ["| operators | 832x480, ComfyUI | ours | 1280x720, ComfyUI | ours |", "|---|---|---|---|---|"]
    runs = [decoder_traffic(*size, ours) for size in ((480, 832), (720, 1280)) for ours in (False, True)]
    for title, names in GROUPS.items():
        cells = [(sum(run.bytes[n] for n in names), sum(run.launches[n] for n in names)) for run in runs]
        lines.append(_traffic_row(title, cells))
    lines.append(_traffic_row("all but convolutions", [run.without_convolutions() for run in runs]))
    return "\n".join(lines)


GROUPS = {
    "convolutions": ("convolution",),
    "norm, SiLU and padding": (
        "linalg_vector_norm", "clamp_min", "div", "mul", "silu", "zeros", "cat", "rms_norm_silu_pad",
    ),
    "sums (of residuals; in ComfyUI's norm)": ("add",),
    "upsampling and copies": ("upsample_nearest_exact2d", "stack", "clone"),
}  # fmt: skip


def _traffic_row(title: str, cells: list[tuple[int, int]]) -> str:
    return f"| {title} | " + " | ".join(f"{size / 1e9:.1f} ({count})" for size, count in cells) + " |"


def speed(side: int = 8, frames: int = 17, runs: int = 3) -> str:
    """How many times as fast the TAEHV decodes to images, and ours as ComfyUI's decode: CPU seconds of this process,
    the best of some runs each, in turn."""
    from td_pack.tests.support.host import load_host

    load_host()
    import torch
    from td_pack.turbo_core.host.decode import decode_images, stock_decode

    vaes = {name: made(name) for name, _ in (FULL, SMALL)}
    ways = {
        "ours": partial(decode_images, vaes[FULL[0]]),
        "ComfyUI": partial(stock_decode, vaes[FULL[0]]),
        "TAEHV": partial(decode_images, vaes[SMALL[0]]),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    latent = torch.randn(1, 16, (frames + 3) // 4, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for name in [*ways] * runs:
            start = time.process_time()
            ways[name](latent)
            seconds[name] = min(seconds[name], time.process_time() - start)
    ours, stock, small = seconds.values()
    return (
        f"{frames} frames of {side * 8}x{side * 8}: {FULL[0]} {ours:.2f} s of CPU time, {ours / stock:.3f} times "
        f"ComfyUI's; {SMALL[0]} {small:.2f} s, {ours / small:.1f} times as fast"
    )


def made(name: str):
    """A random VAE: "Wan" and the channels of its decoder's last layer, or "TAEHV". Needs the host loaded."""
    import comfy.sd
    from td_pack.tests.support.checkpoints import vae_state_dict
    from td_pack.tests.support.vaes import taehv_state_dict

    kind, _, dim = name.partition(" ")
    return comfy.sd.VAE(sd=vae_state_dict(dim=int(dim)) if kind == "Wan" else taehv_state_dict())


def high_water() -> float:
    """The most that was resident, of any kind, in GB (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / GB
