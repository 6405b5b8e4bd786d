"""`dev.py demo`: queues two shipped workflows on a live server and keeps the videos and a sheet of their frames.

Without --models the weights are tiny and random, so the videos show noise, but all that makes them is the real thing.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw
from td_pack.turbo_core.batch.strip import paste_row, spaced_frames

from . import checkpoints, lingbot, workflows
from .client import ExecutionFailed, PromptRejected
from .host import comfyui_path, load_host
from .server import ComfyServer, ServerFailed

JOBS = {"t2v": "TurboWan2.1-T2V-1.3B-480P", "i2v": "TurboWan2.2-I2V-A14B-720P"}
TINY_FILES = {
    "*T2V*": checkpoints.T2V_SLA,
    "*I2V*high*": checkpoints.I2V_HIGH,
    "*I2V*low*": checkpoints.I2V_LOW,
    "high_noise_model*": lingbot.HIGH,
    "low_noise_model*": lingbot.LOW,
    "*vae*": checkpoints.VAE,
}
# 800 tokens: enough blocks for the sparse attention to leave some out.
TINY_SIZE = {"width": 256, "height": 160, "length": 17}
PICTURE = "example.png"
SHEET_HEIGHT = 160
DAY = 24 * 3600


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="where the results go")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="a ComfyUI models folder with the real weights: runs the workflows unchanged",
    )
    options = parser.parse_args(arguments)
    if options.models and not options.models.is_dir():
        parser.error(f"{options.models} is not a folder")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-demo-", ignore_cleanup_errors=True) as folder:
        try:
            videos = run_jobs(Path(folder), options.out, options.models)
        except (ServerFailed, PromptRejected, ExecutionFailed, MissingFiles) as error:
            print(f"The demo failed: {error}")
            return 1
    sheet = contact_sheet(videos, options.out / "contact_sheet.png")
    for path in (*videos, sheet):
        print(path.resolve())
    return 0


class MissingFiles(Exception):
    """The models folder lacks files that the workflows name."""


def run_jobs(base: Path, out: Path, models: Path | None) -> list[Path]:
    """Runs every job on one server and returns the videos."""
    (base / "input").mkdir()
    shutil.copy(Path(comfyui_path()) / "input" / PICTURE, base / "input" / PICTURE)
    prompts = {name: workflows.load(workflow) for name, workflow in JOBS.items()}
    extra_arguments = ()
    if models:
        extra_arguments = ("--extra-model-paths-config", str(write_model_paths(base / "models.yaml", models)))
    else:
        load_host()
        checkpoints.write_models(base / "models")
        prompts = {name: workflows.fit(prompt, models=TINY_FILES, **TINY_SIZE) for name, prompt in prompts.items()}
    print("starting ComfyUI", flush=True)
    server = ComfyServer(base, test_nodes=not models, extra_arguments=extra_arguments)
    try:
        with server:
            refuse_missing(prompts, server, models)
            return [run_job(name, prompt, server, out) for name, prompt in prompts.items()]
    finally:
        shutil.copy(server.log_path, out / "server.log")


def write_model_paths(path: Path, models: Path) -> Path:
    """The configuration that adds the models folder to ComfyUI's own (JSON is YAML)."""
    folders = {name: name for name in ("vae", "loras", "clip_vision")}
    folders |= {"diffusion_models": "diffusion_models\nunet", "text_encoders": "text_encoders\nclip"}
    path.write_text(json.dumps({"demo": {"base_path": str(models.resolve()), **folders}}), encoding="utf-8")
    return path


def refuse_missing(prompts: dict[str, dict], server: ComfyServer, models: Path | None) -> None:
    info = server.client.object_info()
    missing = {file for prompt in prompts.values() for file in workflows.missing_files(prompt, info)}
    if missing:
        raise MissingFiles(f"{models} lacks\n" + "\n".join(f"  {file}" for file in sorted(missing)))


def run_job(name: str, prompt: dict, server: ComfyServer, out: Path) -> Path:
    def show(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"]:
            print(f"{name}: {prompt[data['node']]['class_type']}", flush=True)
        elif kind == "progress":
            print(f"{name}:   {data['value']}/{data['max']}", flush=True)

    start = time.monotonic()
    result = server.client.run(prompt, on_event=show, timeout=DAY)
    video = out / f"{name}.mp4"
    video.write_bytes(server.client.view(result.files[0]))
    print(f"{name}: {JOBS[name]} took {time.monotonic() - start:.1f} s, {result.previews_count} previews", flush=True)
    return video


def contact_sheet(videos: list[Path], path: Path) -> Path:
    """One row of evenly spaced frames for each video."""
    rows = [paste_row(spaced_frames(video), SHEET_HEIGHT) for video in videos]
    sheet = Image.new("RGB", (max(row.width for row in rows), len(rows) * SHEET_HEIGHT))
    for i, (video, row) in enumerate(zip(videos, rows, strict=True)):
        sheet.paste(row, (0, i * SHEET_HEIGHT))
        ImageDraw.Draw(sheet).text((4, i * SHEET_HEIGHT + 2), video.stem, "white", stroke_width=2, stroke_fill="black")
    sheet.save(path)
    return path
