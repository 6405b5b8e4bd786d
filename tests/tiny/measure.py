"""The figures of the toy models: whether clips match their prompts, and PSNR and SSIM of each way of running them
against the reference."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import folder_paths
import safetensors.torch
import torch
from PIL import Image

from ...kernels.attention.pv_format import PV_FORMATS
from ...turbo_core.host.lora import with_lora
from ...turbo_core.host.quant import ACTIVATIONS
from . import models, tasks, vision, world
from .training.whole_vae import WanVAE

CLIPS, SEED = 64, 1000
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Row:
    """Shares of clips that show what the prompt says; PSNR in dB and SSIM against the reference of the table, where
    there is one; `first`, `last`: PSNR of the first and the last frame against the given ones (I2V), `worst` the least
    of the last ones; `persists`: share of videos whose segments all have the right color and direction; `turquoise`:
    share of clips in that color."""

    name: str
    color: float
    kind: float
    direction: float
    everything: float
    psnr: float | None = None
    ssim: float | None = None
    first: float | None = None
    last: float | None = None
    worst: float | None = None
    persists: float | None = None
    turquoise: float | None = None


def scenes(count: int = CLIPS) -> list[world.Scene]:
    """Scenes of seeds that training does not use: its seeds are below 2^30."""
    return [world.scene((1 << 30) + SEED + i) for i in range(count)]


def judge(
    name: str,
    clips: torch.Tensor,
    wanted: list[world.Scene],
    reference: torch.Tensor | None = None,
    palette: dict | None = None,
    **more,
) -> Row:
    """`palette` replaces the named colors (names to RGB); `more` are further columns of the row."""
    scores = [vision.score(clip, scene, palette) for clip, scene in zip(clips, wanted, strict=True)]

    def share(part: str) -> float:
        return sum(getattr(score, part) for score in scores) / len(scores)

    if reference is not None:
        more["psnr"] = mean(vision.psnr(a, b) for a, b in zip(clips, reference, strict=True))
        more["ssim"] = mean(vision.ssim(a, b) for a, b in zip(clips, reference, strict=True))
    return Row(name, share("color"), share("kind"), share("direction"), share("all"), **more)


def mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def shows(clip: torch.Tensor, wanted: world.Scene, color: str, palette: dict) -> bool:
    """Whether a clip's first shape has this color of a palette."""
    pixels = clip.float().numpy()
    found = vision.look(pixels, vision.background_of(pixels), wanted, palette)
    return bool(found) and found[0].color == color


class Table:
    """Runs the models and collects rows. `dense`: the checkpoint before sparse-linear attention was trained, or
    None."""

    def __init__(
        self, weights: Path, folder: Path, count: int = CLIPS, dense: Path | None = None, show=lambda row: None
    ):
        self.weights, self.folder, self.show, self.dense = weights, folder, show, dense
        self.vae: WanVAE = models.load_vae(weights / models.VAE)
        self.count, self.scenes = count, scenes(count)
        self.rows: list[Row] = []
        self.strips: list[torch.Tensor] = []

    def add(self, row: Row, clips: torch.Tensor) -> torch.Tensor:
        self.rows.append(row)
        self.strips.append(clips[:4, [0, 16, 32]])
        self.show(row)
        return clips

    def clips(self, high, **options) -> torch.Tensor:
        return models.decode(self.vae, models.sample(high, self.scenes, SEED, **options))

    def t2v(self) -> None:
        path = self.weights / models.T2V
        sparse, dense = models.load(path, 2), models.load(path)
        if self.dense:
            reference = self.clips(models.load(self.dense))
            self.add(
                judge("dense model, dense attention, 4 steps, SDE (the reference)", reference, self.scenes), reference
            )
        else:
            reference = self.clips(dense)

        def row(name: str, high, **options) -> None:
            clips = self.clips(high, **options)
            self.add(judge(name, clips, self.scenes, reference), clips)

        row("SLA weights, dense attention", dense)
        for blocks in (1, 2, 3, 5, 9):
            row(f"SLA, {blocks} of 9 key blocks", models.load(path, blocks))
        for steps in (1, 2, 3):
            row(f"SLA 2 of 9, {steps} step{'s' * (steps > 1)}", sparse, steps=steps)
        row("SLA 2 of 9, 4 steps, ODE", sparse, mode="ode")
        quantized = models.int8(path, self.folder)
        row("int8, dense attention", models.load(quantized))
        row("int8, SLA 2 of 9", models.load(quantized, 2))

    def int8(self) -> None:
        """What int8 costs, with the activations of each kind, against float at the same top-k."""
        path, reference = self.weights / models.T2V, None
        quantized = models.int8(path, self.folder)
        runs = {"float (the reference)": models.load(path, 2)}
        runs |= {f"int8, activations {each}": models.load(quantized, 2, activations=each) for each in ACTIVATIONS}
        for name, high in runs.items():
            clips = self.clips(high)
            self.add(judge(f"SLA 2 of 9, {name}", clips, self.scenes, reference), clips)
            reference = clips if reference is None else reference

    def attention(self) -> None:
        """Computed in float32, so that a difference is of sage attention alone; one step, which does what four do
        here, since its reference is slow on a CPU."""
        path, reference = self.weights / models.T2V, None
        for pv in ("", *PV_FORMATS):
            clips = self.clips(models.load(path, 2, "fp32", pv), steps=1)
            name = (
                f"SLA 2 of 9, 1 step, sage attention, v in {pv}"
                if pv
                else "SLA 2 of 9, 1 step, float32 (the reference)"
            )
            self.add(judge(name, clips, self.scenes, reference), clips)
            reference = clips if reference is None else reference

    def lora(self) -> None:
        wanted = [scene for scene in scenes(400) if len(scene.shapes) == 1 and scene.shapes[0].color == "red"][:16]
        tensors = {k: v.float() for k, v in safetensors.torch.load_file(self.weights / models.LORA).items()}
        path = self.weights / models.T2V
        palette = world.COLORS | {"turquoise": world.TURQUOISE}
        for kind, base in (("float", path), ("int8", models.int8(path, self.folder))):
            model, reference = models.load(base, 2), None
            for strength in STRENGTHS:
                patched, _ = with_lora(model, models.LORA, tensors, strength)
                clips = models.decode(self.vae, models.sample(patched, wanted, SEED))
                reference = clips if reference is None else reference
                share = mean(
                    shows(clip, scene, "turquoise", palette) for clip, scene in zip(clips, wanted, strict=True)
                )
                name = f"LoRA at {strength:g}, {kind}, SLA 2 of 9, red prompts"
                self.add(judge(name, clips, wanted, reference, palette, turquoise=share), clips)

    def i2v(self) -> None:
        high, low = (models.load(self.weights / name) for name in (models.I2V_HIGH, models.I2V_LOW))
        given = torch.stack([world.render(scene, frames=1)[0] for scene in self.scenes])
        reference = None

        def row(name: str, **options) -> torch.Tensor:
            clips = self.clips(high, vae=self.vae, **options)
            first = mean(vision.psnr(clip[0], frame) for clip, frame in zip(clips, given, strict=True))
            return self.add(judge(name, clips, self.scenes, reference, first=first), clips)

        reference = row("I2V, 4 steps, ODE, switch at 0.9 (2+2)", low=low, mode="ode")
        row("I2V, 4 steps, SDE, switch at 0.9 (2+2)", low=low)
        row("I2V, 4 steps, ODE, wrong switch (3+1)", low=low, mode="ode", boundary=0.8)
        row("I2V, 4 steps, ODE, high expert alone", mode="ode")
        for steps in (1, 2, 3):
            row(f"I2V, {steps} step{'s' * (steps > 1)}, ODE", low=low, mode="ode", steps=steps)

    def _experts(self):
        """The I2V pair in float32, which is faster than bfloat16 on many CPUs."""
        return (models.load(self.weights / name, dtype="fp32") for name in (models.I2V_HIGH, models.I2V_LOW))

    def last(self) -> None:
        """Whether a last frame that is given is shown: of scenes that end where prompt and first frame say, and of
        those that end elsewhere."""
        high, low = self._experts()
        straight = [scene for scene in scenes(2 * self.count) if len(scene.shapes) == 1][: self.count]
        elsewhere = [world.elsewhere(scene, SEED + i) for i, scene in enumerate(straight)]
        for name, wanted in (("", straight), (", ends elsewhere", elsewhere)):
            whole = torch.stack([world.render(scene) for scene in wanted])
            for last, given in ((False, "first frame given"), (True, "first and last frame given")):
                clips = tasks.first_and_last(high, low, self.vae, wanted, SEED, last)
                first, end = (
                    [vision.psnr(clip[i], shown[i]) for clip, shown in zip(clips, whole, strict=True)] for i in (0, -1)
                )
                row = judge(given + name, clips, wanted, whole, first=mean(first), last=mean(end), worst=min(end))
                self.add(row, clips)

    def long(self) -> None:
        """Three segments as the long-video template chains them."""
        high, low = self._experts()
        folder_paths.set_temp_directory(str(self.folder))
        wanted = tasks.crossing(scenes(8 * self.count), self.count)
        parts = tasks.segments(high, low, self.vae, wanted, SEED)
        for k, clips in enumerate(parts, 1):
            share = mean(tasks.persist(parts[:k], wanted))
            self.add(judge(f"segment {k} of {len(parts)}", clips, wanted, persists=share), clips)

    def delta(self) -> None:
        """A fine-tune of the dense teacher made turbo by the difference between the sparse model and the teacher."""
        teacher, fine_tune, made = tasks.by_delta(self.weights, self.folder)
        named = [scene for scene in scenes(16 * self.count) if len(scene.shapes) == 1]
        red = [scene for scene in named if scene.shapes[0].color == "red"][: self.count]
        others = [scene for scene in named if scene.shapes[0].color != "red"][: self.count]
        palette = world.COLORS | {"turquoise": world.TURQUOISE}
        runs = {
            "the teacher, dense attention": models.load(teacher, dtype="fp32"),
            "the turbo model, SLA 2 of 9": models.load(self.weights / models.T2V, 2, "fp32"),
            "the fine-tune, dense attention": models.load(fine_tune, dtype="fp32"),
            "the fine-tune, 2 of 9 key blocks without the delta": models.load(fine_tune, 2, "fp32", untrained=True),
            "the fine-tune and the delta, SLA 2 of 9": models.load(made, 2, "fp32"),
        }
        for name, high in runs.items():
            for prompts, wanted in (("red", red), ("other", others)):
                clips = models.decode(self.vae, models.sample(high, wanted, SEED))
                share = mean(
                    shows(clip, scene, "turquoise", palette) for clip, scene in zip(clips, wanted, strict=True)
                )
                self.add(judge(f"{name}, {prompts} prompts", clips, wanted, None, palette, turquoise=share), clips)


def sheet(table: Table, path: Path) -> None:
    """Four clips of each row as frames 0, 16 and 32, rows in the order of the table, at half size."""
    strips = [torch.cat([frame for clip in clips for frame in clip], 1)[::2, ::2] for clips in table.strips]
    Image.fromarray((torch.cat(strips).numpy() * 255).round().astype("uint8")).save(path, quality=85)


COLUMNS = {
    "color": ("color", "{:.0%}"),
    "kind": ("shape", "{:.0%}"),
    "direction": ("direction", "{:.0%}"),
    "everything": ("all three", "{:.0%}"),
    "first": ("first frame", "{:.1f} dB"),
    "last": ("last frame", "{:.1f} dB"),
    "worst": ("worst last frame", "{:.1f} dB"),
    "persists": ("all segments", "{:.0%}"),
    "turquoise": ("turquoise", "{:.0%}"),
    "psnr": ("PSNR", "{:.1f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
}


def cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return "equal" if name == "psnr" and value >= 99 else COLUMNS[name][1].format(value)


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table with the columns that any of them has."""
    used = [name for name in COLUMNS if any(getattr(row, name) is not None for row in rows)]
    lines = ["| run | " + " | ".join(COLUMNS[name][0] for name in used) + " |", "|---" * (len(used) + 1) + "|"]
    for row in rows:
        values = [getattr(row, name) for name in used]
        cells = [cell(name, value) for name, value in zip(used, values, strict=True)]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(weights: Path, out: Path, dense: Path | None, parts: list[str], count: int, show) -> None:
    """Measures each part, a method of Table, and leaves its table and a contact sheet, tiny-PART.json, .md and .jpg."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-tiny-") as folder:
        for part in parts:
            table = Table(weights, Path(folder), count=count, dense=dense, show=show)
            getattr(table, part)()
            rows = [asdict(row) for row in table.rows]
            (out / f"tiny-{part}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
            (out / f"tiny-{part}.md").write_text(markdown(table.rows) + "\n", encoding="utf-8")
            sheet(table, out / f"tiny-{part}.jpg")
