"""`dev.py bench memory`: memory of a whole image-to-video run by phase, on a live server: full-size random umT5-XXL, two int8 14B
experts and VAE, a tiny latent, and of the encoded prompt the first tokens.

Two ways of running it: `phases` with this pack's nodes, and `kept` with ComfyUI's own text encoding, whose encoder stays. The
samples of both must be equal bit for bit. Anonymous memory (RssAnon) is what can push a machine into swapping."""

import argparse
import itertools
import shutil
import tempfile
import threading
import time
from pathlib import Path

from .memory import EXPERT, GB, resident

NEEDED = {False: 38, True: 1}  # GB of disk, full-size and small
LIMIT = 16.0  # GB of anonymous memory
STEPS, BOUNDARY = 2, 0.95  # one step of each expert
VAE = "vae.safetensors"
SMALL = ("small_umt5.safetensors", "small_text_high.pth", "small_text_low.pth")
FULL_SIZE = ("umt5_xxl.safetensors", "high.safetensors", "low.safetensors")
PROMPT = "a red disc moves to the left across a quiet blue lake"
PHASES = {
    "text": "text encoder",
    "clip": "text encoder",
    "vae": "load VAE",
    "latent": "image encoder",
    "model": "map the high expert",
    "low": "map the low expert",
    "decode": "VAE decode",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--only", choices=("phases", "kept"), help="one of the two ways")
    parser.add_argument("--small", action="store_true", help="tiny files, to see that it works: `phases` only")
    options = parser.parse_args(arguments)
    import torch

    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        free = shutil.disk_usage(folder).free / GB
        if free < (needed := NEEDED[options.small]):
            print(f"bench memory needs {needed} GB of disk and {folder} has {free:.0f}: give another place with --dir.")
            return 1
        sizes = write_models(Path(folder) / "models", options.small)
        print(f"Everything in memory at once: {sum(sizes.values()):.1f} GB (computed: the sizes of the files {sizes}).")
        ways = ["phases"] if options.small else [options.only] if options.only else ["phases", "kept"]
        results = {way: measured(Path(folder), way, SMALL if options.small else FULL_SIZE) for way in ways}
    for way, (rows, _) in results.items():
        print(f"\n{way}\n\n| phase | seconds | anonymous, peak | file-backed, peak |\n|---|---|---|---|")
        for phase, seconds, anonymous, mapped in rows:
            print(f"| {phase} | {seconds:.0f} | {anonymous:.1f} GB | {mapped:.1f} GB |")
    samples = [samples for _, samples in results.values()]
    if len(samples) == 2:
        print(f"\nSame samples bit for bit: {torch.equal(*samples)}")
    within = all(row[2] < LIMIT for row in results.get("phases", ([],))[0])
    return 0 if within and (len(samples) < 2 or torch.equal(*samples)) else 1


def write_models(models: Path, small: bool) -> dict[str, float]:
    """The files of the run, full-size or tiny; their sizes in GB."""
    from td_pack.tests.support import checkpoints, text_encoders
    from td_pack.tests.support.full_size import write_encoder, write_expert
    from td_pack.tests.support.host import load_host

    load_host()
    folder = models / "diffusion_models"
    folder.mkdir(parents=True)
    files = [checkpoints.write_safetensors(models / "vae" / VAE, checkpoints.vae_state_dict(dim=8 if small else 96))]
    if small:
        text_encoders.write_small_models(models)
        encoder, *experts = SMALL
    else:
        (models / "text_encoders").mkdir()
        encoder, *experts = FULL_SIZE
        write_encoder(models / "text_encoders" / encoder, 0)
        for seed, name in enumerate(experts):
            write_expert(folder / name, seed, **EXPERT)
    files += [models / "text_encoders" / encoder, *(folder / name for name in experts)]
    return {path.name: round(path.stat().st_size / GB, 1) for path in files}


def prompt(way: str, encoder: str, high: str, low: str) -> dict:
    """The job: with this pack's nodes, or with ComfyUI's for the text encoder and the decoder."""
    from td_pack.tests.support.jobs import i2v_job, loader, node

    text = {"text": node("TurboDiffusionTextEncode", encoder_name=encoder, text=PROMPT, cache=False)}
    if way == "kept":
        text = {
            "clip": node("CLIPLoader", clip_name=encoder, type="wan", device="default"),
            "text": node("CLIPTextEncode", clip=["clip", 0], text=PROMPT),
        }
    job = i2v_job(way, STEPS, low, boundary=BOUNDARY)
    job |= text | {
        "model": loader(high),
        "vae": node("VAELoader", vae_name=VAE),
        "decode": node(
            "VAEDecode" if way == "kept" else "TurboDiffusionVAEDecode", samples=["sample", 0], vae=["vae", 0]
        ),
        "images": node("PreviewImage", images=["decode", 0]),
    }
    job["tokens"] = node("TestFirstTokens", conditioning=["text", 0], count=8)
    job["latent"]["inputs"] |= {
        "width": 32,
        "height": 32,
        "length": 5,
        "positive": ["tokens", 0],
        "negative": ["tokens", 0],
    }
    return job


def measured(folder: Path, way: str, files: tuple[str, str, str]) -> tuple[list[tuple], "object"]:
    """Runs the job on a fresh server: (phase, seconds, peak anonymous, peak file-backed GB) in order, and its samples."""
    from td_pack.tests.support.jobs import saved
    from td_pack.tests.support.server import ComfyServer

    with ComfyServer(
        folder / way, test_nodes=True, extra_arguments=("--extra-model-paths-config", str(paths_file(folder)))
    ) as server:
        watch = PhaseWatch(server.pid)
        try:
            server.client.run(prompt(way, *files), on_event=watch.on_event, timeout=3600)
        finally:
            watch.stop()
        return watch.rows(), saved(server, way)


def paths_file(folder: Path) -> Path:
    """Tells a server where the models are, whatever its own folder."""
    path = folder / "paths.yaml"
    lines = [f"  {kind}: models/{kind}" for kind in ("text_encoders", "diffusion_models", "vae")]
    path.write_text("\n".join(["bench:", f"  base_path: {folder}", *lines]) + "\n")
    return path


class PhaseWatch:
    """Samples a process's memory every 50 ms, and files the samples under the phase that the server's events say it is in."""

    def __init__(self, pid: int):
        self._pid, self._phase, self._samples, self._done = pid, "start", [], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def on_event(self, kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] == "sample":
            self._phase = "high expert"
        elif kind == "progress" and data["node"] == "sample" and data["value"] == 1:
            self._phase = "low expert"
        elif kind == "executing":
            self._phase = PHASES.get(data["node"], "rest")
        if kind in ("executing", "progress"):
            print(f"  {self._phase}: {resident(self._pid)['RssAnon']:.1f} GB anonymous at its start", flush=True)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def rows(self) -> list[tuple]:
        rows = {}
        for (began, phase, memory), (ended, *_) in itertools.pairwise(self._samples):
            seconds, anonymous, mapped = rows.get(phase, (0.0, 0.0, 0.0))
            rows[phase] = (seconds + ended - began, max(anonymous, memory["RssAnon"]), max(mapped, memory["RssFile"]))
        return [(phase, *figures) for phase, figures in rows.items()]

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._samples.append((time.perf_counter(), self._phase, resident(self._pid)))
