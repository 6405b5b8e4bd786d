"""ComfyUI's context windows over our models: each window is the run of its frames alone."""

import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.experts import guided
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model

FRAMES, WINDOW = 4, 2
SHAPE = (1, 16, FRAMES, 8, 8)
SIGMAS = [0.99, 0.95, 0.6, 0.0]  # two steps of the high expert, one of the low one


def windowed(model):
    """Two windows that do not overlap."""
    return ContextWindowsManualNode.execute(
        model, WINDOW, 0, "standard_static", 1, False, "flat", 2, False, causal_window_fix=False
    ).args[0]


class Noise:
    """A NOISE of given values."""

    seed = 0

    def __init__(self, values):
        self.values = values

    def generate_noise(self, latent):
        return self.values


def conditioning(frames: slice, image: bool, camera: bool) -> list:
    text, more = checkpoints.draw(1, "text", (1, 8, 4096)), {}
    if image:
        mask = torch.ones(1, 1, *SHAPE[2:])
        mask[:, :, 0] = 0
        more |= {"concat_latent_image": checkpoints.draw(1, "image", SHAPE)[:, :, frames]}
        more |= {"concat_mask": mask[:, :, frames]}
    if camera:
        more |= {"camera_conditions": checkpoints.draw(1, "camera", (1, 6 * 64, *SHAPE[2:]))[:, :, frames]}
    return [[text, more]]


def models(kind: str, folder) -> list:
    """One or two experts."""
    if kind == "camera":
        path = checkpoints.write_safetensors(folder / "cam.safetensors", lingbot.state_dict(5))
        return [load_model(str(path))]
    options = {"sla": True} if "sla" in kind else {}
    channels = 36 if "experts" in kind else 16
    loaded = []
    for seed in (1, 2)[: 1 + ("experts" in kind)]:
        tensors = checkpoints.upstream_state_dict(seed, in_channels=channels, int8="int8" in kind, **options)
        loaded.append(load_model(str(checkpoints.write_pth(folder / f"{seed}.pth", tensors))))
    return [with_attention(model, "sla", 0.5, "", False) for model in loaded] if options else loaded


@pytest.mark.parametrize("kind", ["sla", "sla int8", "sla int8 experts", "camera"])
def test_a_window_is_the_run_of_its_frames(kind, tmp_path):
    experts, image, camera = models(kind, tmp_path), "experts" in kind or kind == "camera", kind == "camera"
    noise = checkpoints.draw(2, "noise", SHAPE)
    given = {"samples": torch.zeros(SHAPE)}
    positive = conditioning(slice(None), image, camera)
    got = guided(positive, SIGMAS, *map(windowed, experts), noise=Noise(noise), given=given)
    for start in range(0, FRAMES, WINDOW):
        frames = slice(start, start + WINDOW)
        part = {"samples": torch.zeros(SHAPE)[:, :, frames]}
        alone = conditioning(frames, image, camera)
        want = guided(alone, SIGMAS, *experts, noise=Noise(noise[:, :, frames]), given=part)
        assert torch.equal(got[:, :, frames], want)
