"""`dev.py bench memory`: memory of a whole image-to-video run by phase, on a live server: full-size random umT5-XXL,
two 14B experts and VAE, a tiny latent, and of the encoded prompt the first tokens.

Ways of running it: `phases` with this pack's nodes and int8 experts; `kept` with ComfyUI's own text encoding, whose
encoder stays, and samples that must be equal bit for bit; `lingbot` with LingBot-World's experts in NF4, guidance and a
camera, as its workflow has them. Anonymous memory (RssAnon) is what can push a machine into swapping."""

import argparse
import itertools
import shutil
import tempfile
import threading
import time
from pathlib import Path

from .memory import EXPERT, GB, resident

LIMITS = {"phases": 16.0, "lingbot": 20.0}  # GB of anonymous memory
STEPS, BOUNDARY = 2, 0.95  # one step of each expert
SIZE = {"width": 32, "height": 32, "length": 5}
VAE, ENCODER, HIGH, LOW = "vae.safetensors", "umt5_xxl.safetensors", "high.safetensors", "low.safetensors"
SMALL = {ENCODER: "small_umt5.safetensors", HIGH: "small_text_high.pth", LOW: "small_text_low.pth"}
PROMPT = "a red disc moves to the left across a quiet blue lake"
PHASES = {
    "TurboDiffusionTextEncode": "text encoder",
    "CLIPLoader": "text encoder",
    "VAELoader": "load VAE",
    "WanImageToVideo": "image encoder",
    "TurboDiffusionLoader": "map the experts",
    "TurboDiffusionSample": "high expert",
    "SamplerCustomAdvanced": "high expert",
    "TurboDiffusionVAEDecode": "VAE decode",
    "TurboDiffusionVAEDecodeVideo": "VAE decode",
    "VAEDecode": "VAE decode",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench memory", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--ways", nargs="+", choices=("phases", "kept", "lingbot"), default=["phases", "kept"])
    parser.add_argument("--small", action="store_true", help="tiny files, to see that it works: `phases` only")
    options = parser.parse_args(arguments)
    ways = ["phases"] if options.small else options.ways
    import torch

    results = {}
    for group in (["lingbot"], ["phases", "kept"]):  # one kind of experts on the disk at a time
        chosen = [way for way in ways if way in group]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
            free, needed = shutil.disk_usage(folder).free / GB, 1 if options.small else 38
            if free < needed:
                print(
                    f"bench memory needs {needed} GB of disk and {folder} has {free:.0f}: give another place with "
                    "--dir."
                )
                return 1
            sizes = write_models(Path(folder) / "models", options.small, nf4="lingbot" in group)
            print(
                f"Everything in memory at once: {sum(sizes.values()):.1f} GB (computed: the sizes of the files "
                f"{sizes})."
            )
            for way in chosen:
                results[way] = measured(Path(folder), way, job(way, SMALL if options.small else {}))
                show(way, results[way][0])
    same = len(results.keys() & {"phases", "kept"}) < 2 or torch.equal(results["phases"][1], results["kept"][1])
    if {"phases", "kept"} <= results.keys():
        print(f"\nSame samples bit for bit: {same}")
    within = all(row[2] < LIMITS[way] for way in LIMITS.keys() & results.keys() for row in results[way][0])
    return 0 if within and same else 1


def show(way: str, rows: list[tuple]) -> None:
    print(f"\n{way}\n\n| phase | seconds | anonymous, peak | file-backed, peak |\n|---|---|---|---|")
    for phase, seconds, anonymous, mapped in rows:
        print(f"| {phase} | {seconds:.0f} | {anonymous:.1f} GB | {mapped:.1f} GB |", flush=True)


def write_models(models: Path, small: bool, nf4: bool) -> dict[str, float]:
    """The files of the run, full-size or tiny; their sizes in GB."""
    from td_pack.tests.bench.full_size import write_encoder, write_expert, write_nf4_expert
    from td_pack.tests.support import checkpoints, text_encoders
    from td_pack.tests.support.host import load_host

    load_host()
    folder = models / "diffusion_models"
    folder.mkdir(parents=True)
    files = [checkpoints.write_safetensors(models / "vae" / VAE, checkpoints.vae_state_dict(dim=8 if small else 96))]
    if small:
        text_encoders.write_small_models(models)
        files += [models / "text_encoders" / SMALL[ENCODER], *(folder / SMALL[name] for name in (HIGH, LOW))]
    else:
        (models / "text_encoders").mkdir()
        files.append(write_encoder(models / "text_encoders" / ENCODER, 0))
        for seed, name in enumerate((HIGH, LOW)):
            if nf4:
                size = {name: EXPERT[name] for name in ("dim", "ffn_dim", "layers")}
                files.append(write_nf4_expert(folder / name, seed, **size))
            else:
                files.append(write_expert(folder / name, seed, **EXPERT))
    return {path.name: round(path.stat().st_size / GB, 1) for path in files}


def job(way: str, files: dict[str, str]) -> dict:
    """The prompt of a way, by node name; `files` gives other names for its files."""
    from td_pack.tests.support.jobs import node

    prompt = lingbot_job() if way == "lingbot" else turbo_job(way)
    for name, given in list(prompt.items()):
        inputs = given["inputs"]
        inputs |= {key: files[value] for key, value in inputs.items() if isinstance(value, str) and value in files}
        inputs |= {key: ["first of " + value[0], 0] for key, value in inputs.items() if is_text(prompt, value)}
        if given["class_type"] in ("TurboDiffusionTextEncode", "CLIPTextEncode"):
            prompt["first of " + name] = node("TestFirstTokens", conditioning=[name, 0], count=8)
    return prompt


def is_text(prompt: dict, value) -> bool:
    return isinstance(value, list) and prompt[value[0]]["class_type"] in ("TurboDiffusionTextEncode", "CLIPTextEncode")


def turbo_job(way: str) -> dict:
    from td_pack.tests.support.jobs import i2v_job, loader, node

    text = {"text": node("TurboDiffusionTextEncode", encoder_name=ENCODER, text=PROMPT, cache=False)}
    if way == "kept":
        text = {
            "clip": node("CLIPLoader", clip_name=ENCODER, type="wan", device="default"),
            "text": node("CLIPTextEncode", clip=["clip", 0], text=PROMPT),
        }
    decoder = "VAEDecode" if way == "kept" else "TurboDiffusionVAEDecode"
    prompt = i2v_job(way, STEPS, LOW, boundary=BOUNDARY) | text
    prompt |= {
        "model": loader(HIGH),
        "vae": node("VAELoader", vae_name=VAE),
        "decode": node(decoder, samples=["sample", 0], vae=["vae", 0]),
        "images": node("PreviewImage", images=["decode", 0]),
    }
    prompt["latent"]["inputs"] |= SIZE
    return prompt


def lingbot_job() -> dict:
    """The shipped workflow at another size, with a picture of one color."""
    from td_pack.tests.support import workflows
    from td_pack.tests.support.jobs import node

    files = {"high_noise_model*": HIGH, "low_noise_model*": LOW, "umt5*": ENCODER, "*vae*": VAE}
    prompt = workflows.fit(workflows.load("LingBot-World-Camera-480P"), models=files, text_node=False, **SIZE)
    for name, given in prompt.items():
        if given["class_type"] == "LoadImage":
            prompt[name] = node("EmptyImage", width=64, height=64, batch_size=1, color=0xCC3300)
        elif given["class_type"] == "BasicScheduler":
            given["inputs"]["steps"] = STEPS
        elif given["class_type"] == "TurboDiffusionTextEncode":
            given["inputs"]["cache"] = False
    return prompt


def measured(folder: Path, way: str, prompt: dict) -> tuple[list[tuple], "object"]:
    """Runs the prompt on a fresh server: (phase, seconds, peak anonymous, peak file-backed GB) in order, and the
    samples it saved."""
    from td_pack.tests.support.jobs import saved
    from td_pack.tests.support.server import ComfyServer

    with ComfyServer(
        folder / way, test_nodes=True, extra_arguments=("--extra-model-paths-config", str(paths_file(folder)))
    ) as server:
        watch = PhaseWatch(server.pid, {name: given["class_type"] for name, given in prompt.items()})
        try:
            server.client.run(prompt, on_event=watch.on_event, timeout=3600)
        finally:
            watch.stop()
        return watch.rows(), None if way == "lingbot" else saved(server, way)


def paths_file(folder: Path) -> Path:
    """Tells a server where the models are, whatever its own folder."""
    path = folder / "paths.yaml"
    lines = [f"  {kind}: models/{kind}" for kind in ("text_encoders", "diffusion_models", "vae")]
    path.write_text("\n".join(["bench:", f"  base_path: {folder}", *lines]) + "\n")
    return path


class PhaseWatch:
    """Samples a process's memory every 50 ms, and files the samples under the phase that the server's events say it is
    in."""

    def __init__(self, pid: int, kinds: dict[str, str]):
        """`kinds`: the class of each node of the prompt."""
        self._pid, self._kinds, self._phase, self._samples, self._done = pid, kinds, "start", [], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def on_event(self, kind: str, data: dict) -> None:
        before = self._phase
        if kind == "executing":
            self._phase = PHASES.get(self._kinds.get(data["node"]), "rest")
        elif kind == "progress" and self._phase == "high expert" and data["value"] == 1:
            self._phase = "low expert"
        if self._phase != before:
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
