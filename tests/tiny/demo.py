"""Queues three shipped workflows on a live server and keeps the videos, a sheet of their frames, and the plot of dense
against sparse attention.

Without --models it runs the toy models of tests/tiny: shapes that move over a flat background. They were trained on a
CPU within two hours for such clips alone; nodes, samplers, attention and decoder are those of the real models.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont
from td_pack.turbo_core.batch.strip import paste_row, spaced_frames

from ..support import checkpoints, workflows
from ..support.client import ExecutionFailed, PromptRejected
from ..support.host import comfyui_path, load_host
from ..support.server import ComfyServer, ServerFailed

JOBS = {
    "t2v": "TurboWan2.1-T2V-1.3B-480P",
    "i2v": "TurboWan2.2-I2V-A14B-720P",
    "compare": "Compare-TurboWan2.1-T2V-1.3B-480P",
}
COMPARE = "TurboDiffusionCompare"
TOY_FILES = {
    "*T2V*": checkpoints.TOY_T2V,
    "*I2V*high*": checkpoints.TOY_I2V_HIGH,
    "*I2V*low*": checkpoints.TOY_I2V_LOW,
    "*vae*": checkpoints.TOY_VAE,
}
# 576 tokens: enough blocks for the sparse attention to leave some out.
TOY_SIZE = {"width": 128, "height": 128, "length": 33}
TOY_PROMPTS = {
    "t2v": "a blue disc moving down fast over a dark background",
    "i2v": "a purple triangle moving up fast over a light background",
    "compare": "a green square moving down slowly over a light background",
}
TOY_FIRST_FRAME = 12  # the seed of where the image-to-video job's shape stands
PICTURE = "example.png"
PLOT = "compare.png"
SHEET_HEIGHT, LABEL_HEIGHT = 160, 32
DAY = 24 * 3600
# The folder under models/ that a loader's input chooses from.
FOLDERS = {
    "model_name": "diffusion_models",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "lora_name": "loras",
    "clip_name": "text_encoders",
    "encoder_name": "text_encoders",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
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
    moving = animation([video for video in videos if video.stem != "compare"], options.out / "demo.webp")
    for path in (*videos, sheet, moving, options.out / PLOT):
        print(path.resolve())
    if not options.models:
        for name, text in TOY_PROMPTS.items():
            print(f"{name}: {text}")
        print("These come from toy models, which know moving shapes only; --models runs the real ones.")
    return 0


class MissingFiles(Exception):
    """The models folder lacks files that the workflows name."""


def run_jobs(base: Path, out: Path, models: Path | None) -> dict[Path, str]:
    """Runs every job on one server and returns the videos with their prompts."""
    (base / "input").mkdir()
    prompts = {name: workflows.load(workflow) for name, workflow in JOBS.items()}
    extra_arguments = ()
    if models:
        shutil.copy(Path(comfyui_path()) / "input" / PICTURE, base / "input" / PICTURE)
        extra_arguments = ("--extra-model-paths-config", str(write_model_paths(base / "models.yaml", models)))
    else:
        write_toy_world(base)
        prompts = {
            name: workflows.fit(prompt, models=TOY_FILES, toy_text=TOY_PROMPTS[name], **TOY_SIZE)
            for name, prompt in prompts.items()
        }
    print("starting ComfyUI", flush=True)
    server = ComfyServer(base, test_nodes=not models, extra_arguments=extra_arguments)
    try:
        with server:
            refuse_missing(prompts, server, models)
            return {run_job(name, prompt, server, out): text_of(prompt) for name, prompt in prompts.items()}
    finally:
        shutil.copy(server.log_path, out / "server.log")


def text_of(prompt: dict) -> str:
    """The text of the prompt."""
    return next(node["inputs"]["text"] for node in prompt.values() if "text" in node["inputs"])


def write_toy_world(base: Path) -> None:
    """The toy models, where ComfyUI looks for models, and the image-to-video job's first frame."""
    checkpoints.write_toy_models(base / "models")
    load_host()
    from . import world

    shown = world.place(world.parse(TOY_PROMPTS["i2v"]), TOY_FIRST_FRAME)
    frame = (world.render(shown, frames=1)[0] * 255).round().byte().numpy()
    Image.fromarray(frame).save(base / "input" / PICTURE)


def write_model_paths(path: Path, models: Path) -> Path:
    """The configuration that adds the models folder to ComfyUI's own (JSON is YAML)."""
    folders = {name: name for name in ("vae", "loras", "clip_vision")}
    folders |= {"diffusion_models": "diffusion_models\nunet", "text_encoders": "text_encoders\nclip"}
    path.write_text(json.dumps({"demo": {"base_path": str(models.resolve()), **folders}}), encoding="utf-8")
    return path


def refuse_missing(prompts: dict[str, dict], server: ComfyServer, models: Path | None) -> None:
    info = server.client.object_info()
    missing = {file for prompt in prompts.values() for file in missing_files(prompt, info)}
    if missing:
        raise MissingFiles(f"{models} lacks\n" + "\n".join(f"  {file}" for file in sorted(missing)))


def missing_files(prompt: dict, object_info: dict) -> list[str]:
    """The model files that the prompt asks for and the server does not list, as paths under models/."""
    missing = []
    for node in prompt.values():
        declared = object_info[node["class_type"]]["input"]
        for name, value in node["inputs"].items():
            spec = (declared.get("required", {}) | declared.get("optional", {})).get(name)
            if workflows.is_model_file(value) and spec and value not in options_of(spec):
                missing.append(f"{FOLDERS[name]}/{value}")
    return missing


def options_of(spec: list) -> list:
    """The choices of an input, in either of the two ways that nodes declare them."""
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])


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
    for key, node in prompt.items():
        if node["class_type"] == COMPARE:
            (plot,) = result.outputs[key]["images"]
            comparison(video, Image.open(io.BytesIO(server.client.view(plot))), out / PLOT)
            print(f"{name}: {result.outputs[key]['text'][0]}", flush=True)
    print(f"{name}: {JOBS[name]} took {time.monotonic() - start:.1f} s, {result.previews_count} previews", flush=True)
    return video


def contact_sheet(videos: dict[Path, str], path: Path) -> Path:
    """One row of evenly spaced frames for each video, none wider than the first, below its name and its prompt."""
    rows = [paste_row(spaced_frames(video), SHEET_HEIGHT) for video in videos]
    width = rows[0].width
    rows = [row.resize((width, row.height * width // row.width)) if row.width > width else row for row in rows]
    font = ImageFont.load_default(LABEL_HEIGHT * 0.6)
    sheet = Image.new("RGB", (width, sum(row.height + LABEL_HEIGHT for row in rows)), "black")
    draw, top = ImageDraw.Draw(sheet), 0
    for (video, text), row in zip(videos.items(), rows, strict=True):
        label = f"{video.stem}: {text}"
        while draw.textlength(label, font) > width - 16:
            label = label[:-4] + "..."
        draw.text((8, top + LABEL_HEIGHT // 6), label, "white", font)
        sheet.paste(row, (0, top + LABEL_HEIGHT))
        top += row.height + LABEL_HEIGHT
    sheet.save(path)
    return path


def comparison(video: Path, plot: Image.Image, path: Path) -> Path:
    """Three frames of a side-by-side video above the plot of its figures."""
    shown = read_frames(video)
    shown = [shown[0], shown[len(shown) // 2], shown[-1]]
    width, height = plot.width // 3, plot.width // 3 * shown[0].height // shown[0].width
    sheet = Image.new("RGB", (plot.width, height + plot.height))
    for i, frame in enumerate(shown):
        sheet.paste(frame.resize((width, height)), (i * width, 0))
    sheet.paste(plot, (0, height))
    sheet.save(path)
    return path


def animation(videos: list[Path], path: Path) -> Path:
    """The videos side by side, each as high as the lowest, moving for as long as the longest."""
    clips = [read_frames(video) for video in videos]
    height = min(clip[0].height for clip in clips)
    clips = [[f.resize((round(f.width * height / f.height), height)) for f in clip] for clip in clips]
    frames = []
    for i in range(max(map(len, clips))):
        frame, left = Image.new("RGB", (sum(clip[0].width for clip in clips), height)), 0
        for clip in clips:
            frame.paste(clip[min(i, len(clip) - 1)], (left, 0))
            left += clip[0].width
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=62, loop=0, quality=80)
    return path


def read_frames(video: Path) -> list[Image.Image]:
    with av.open(str(video)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
