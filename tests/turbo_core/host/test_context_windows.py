"""ComfyUI's context windows over our models: each window is the run of its frames alone."""

import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.experts import given_noise, guided, image_text, text
from td_pack.tests.support.models import loaded
from td_pack.turbo_core.host.attention_patch import with_attention

FRAMES, WINDOW = 4, 2
SHAPE = (1, 16, FRAMES, 8, 8)
SIGMAS = [0.99, 0.95, 0.6, 0.0]  # two steps of the high expert, one of the low one


def windowed(model):
    """Two windows that do not overlap."""
    return ContextWindowsManualNode.execute(
        model, WINDOW, 0, "standard_static", 1, False, "flat", 2, False, causal_window_fix=False
    ).args[0]


def part_of(positive: list, frames: slice) -> list:
    ((text, options),) = positive
    return [[text, {name: value[:, :, frames] for name, value in options.items()}]]


def models(kind: str, folder) -> list:
    """One or two experts."""
    if kind == "camera":
        return [loaded(folder / "cam.safetensors", lingbot.state_dict(5))]
    options = {"sla": True} if "sla" in kind else {}
    channels = 36 if "experts" in kind else 16
    found = []
    for seed in (1, 2)[: 1 + ("experts" in kind)]:
        tensors = checkpoints.upstream_state_dict(seed, in_channels=channels, int8="int8" in kind, **options)
        found.append(loaded(folder / f"{seed}.pth", tensors))
    return [with_attention(model, "sla", 0.5, "", False) for model in found] if options else found


@pytest.mark.parametrize("kind", ["sla", "sla int8", "sla int8 experts", "camera"])
def test_a_window_is_the_run_of_its_frames(kind, tmp_path):
    experts, noise = models(kind, tmp_path), checkpoints.draw(2, "noise", SHAPE)
    camera = {"camera_conditions": checkpoints.draw(1, "camera", (1, 6 * 64, *SHAPE[2:]))} if kind == "camera" else {}
    positive = image_text(shape=SHAPE, **camera) if experts[0].model.spec.takes_image else text()
    given = {"samples": torch.zeros(SHAPE)}
    got = guided(positive, SIGMAS, *map(windowed, experts), noise=given_noise(noise), given=given)
    for start in range(0, FRAMES, WINDOW):
        frames = slice(start, start + WINDOW)
        part = {"samples": torch.zeros(SHAPE)[:, :, frames]}
        alone = part_of(positive, frames)
        want = guided(alone, SIGMAS, *experts, noise=given_noise(noise[:, :, frames]), given=part)
        assert torch.equal(got[:, :, frames], want)
