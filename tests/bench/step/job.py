"""One image-to-video job end to end by phase, with the two int8 experts, text encoder and VAE at full size.

The files are written for it with random values. They lie in the page cache when they are read, and both experts are
links to one file: a disk is not part of what is measured."""

import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ...support import checkpoints, text_encoders
from .. import full_size
from ..kernels.clocks import Clocks
from ..kernels.report import Row
from ..kernels.timing import Clock, single
from ..memory import EXPERT

PHASE = "I2V job, 14B 720p, 4 steps"
DISK = 23e9  # bytes of the files
SECONDS = 150.0  # with less left it is not begun
PHASES = ("load", "high", "switch", "low")  # of the run's own record


class Sizes(NamedTuple):
    width: int
    height: int
    length: int
    full: bool


FULL = Sizes(1280, 720, 81, True)
TINY = Sizes(64, 64, 5, False)


def measure(clock: Clock, clocks: Clocks, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """A row for each phase; seconds of the clock on the wall, each until the device is done."""
    shape = f"{sizes.width}x{sizes.height}, {sizes.length} frames"
    free = shutil.disk_usage(folder).free
    if sizes.full and (free < DISK or clock.left() < SECONDS):
        note = f"not here: it needs {DISK / 1e9:.0f} GB of disk and {SECONDS:.0f} s"
        yield Row(PHASE, "job", shape, note=f"{note}; {free / 1e9:.0f} GB and {clock.left():.0f} s are left")
        return
    began = time.monotonic()
    files = write_files(folder, sizes.full)
    written = single(1e3 * (time.monotonic() - began))
    yield Row(PHASE, "writing the files", shape, written, note="no part of a user's job")
    with torch.inference_mode():
        yield from _phases(files, folder, sizes, shape, clock.device, clocks)


def write_files(folder: Path, full: bool) -> dict[str, Path]:
    """Text encoder, VAE, the high and the low expert."""
    vae = checkpoints.write_safetensors(folder / "vae.safetensors", checkpoints.vae_state_dict(dim=96 if full else 8))
    if full:
        encoder = full_size.write_encoder(folder / "encoder.safetensors", 0)
        high = full_size.write_expert(folder / "high.safetensors", 0, **EXPERT)
        low = folder / "low.safetensors"
        low.hardlink_to(high)
    else:
        text_encoders.write_small_models(folder)
        encoder = folder / "text_encoders" / text_encoders.SMALL
        high, low = (folder / "diffusion_models" / name for name in (text_encoders.SMALL_HIGH, text_encoders.SMALL_LOW))
    return {"encoder": encoder, "vae": vae, "high": high, "low": low}


def _phases(files, folder: Path, sizes: Sizes, shape: str, device: torch.device, clocks: Clocks) -> Iterator[Row]:
    import comfy.sd
    import comfy.utils
    from comfy_extras.nodes_wan import WanImageToVideo
    from td_pack.nodes.decode import DecodedVideo, encode_mp4
    from td_pack.turbo_core.host.decode_video import decode_video
    from td_pack.turbo_core.host.load import load_model
    from td_pack.turbo_core.host.run import run
    from td_pack.turbo_core.host.text_encode import text_conditioning
    from td_pack.turbo_core.record import RUN

    cuda = device.type == "cuda"
    state = {"began": 0.0, "first": time.monotonic()}

    def begin() -> None:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        state["began"] = time.monotonic()

    def row(phase: str, note: str = "", seconds: float | None = None) -> Row:
        if cuda:
            torch.cuda.synchronize()
        seconds = time.monotonic() - state["began"] if seconds is None else seconds
        made = Row(PHASE, phase, shape, single(1e3 * seconds), note=note, clocks=clocks.since(state["began"]))
        made.peak_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        return made

    begin()
    positive = text_conditioning(files["encoder"], files["encoder"].name, text_encoders.PROMPT, [])
    yield row("text encoder")
    begin()
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files["vae"])))
    picture = torch.rand(1, sizes.height, sizes.width, 3, generator=torch.Generator().manual_seed(0))
    started = WanImageToVideo.execute(
        positive, positive, vae, sizes.width, sizes.height, sizes.length, 1, start_image=picture
    )
    positive, _, latent = started.args if hasattr(started, "args") else started.result
    yield row("image encode", "with reading the VAE")
    begin()
    experts = [load_model(str(files[name])) for name in ("high", "low")]
    yield row("reading the experts", "which maps their files")
    begin()
    sampled = run(experts[0], positive, latent, 3, 4, 0, 0.9, "ode", "cpu", experts[1])
    record = sampled[RUN]
    for phase in PHASES:
        if phase in record.seconds:
            passes = [f"{step.ended - step.began:.2f}" for step in record.passes if step.expert == phase]
            yield row(phase, f"seconds of each pass: {', '.join(passes)}" if passes else "", record.seconds[phase])
    yield row("sampling, whole")
    begin()
    rate = Fraction(16)
    path, frames = decode_video(vae, sampled["samples"], folder, partial(encode_mp4, frame_rate=rate))
    yield row("decode", "with encoding the mp4 meanwhile")
    begin()
    DecodedVideo(path, frames, rate).save_to(str(folder / "video.mp4"))
    yield row("file", f"{(folder / 'video.mp4').stat().st_size} bytes")
    yield row("job, end to end", "", time.monotonic() - state["first"])
