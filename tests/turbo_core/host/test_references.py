"""In-context references (ComfyUI's `context_latents`) and an attention of a layer's own, on the pack's forward of the
network."""

import pytest
import torch
from comfy.ldm.modules import attention
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import loaded, relative_error
from td_pack.turbo_core.host.camera_model import CONDCamera

# A reference video shorter than the video, and an image of a size that has to be padded to whole patches.
REFERENCES = [(1, 16, 2, 8, 8), (1, 16, 1, 6, 7)]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("references") / "m.pth"
    return loaded(path, checkpoints.upstream_state_dict(31)).model.diffusion_model


def draw(name: str, shape) -> torch.Tensor:
    return checkpoints.draw(1, name, tuple(shape))


def velocity(network, channels: int = 16, **conditioning) -> torch.Tensor:
    x, text = draw("x", (1, channels, 3, 8, 12)), draw("text", (1, 8, 4096))
    with torch.inference_mode():
        return network(x, torch.tensor([932.0]), context=text, **conditioning)


def test_references_are_seen_as_by_comfyui_s_own_forward(network):
    references = [draw(f"reference {i}", shape) for i, shape in enumerate(REFERENCES)]
    alone, seen = velocity(network), velocity(network, context_latents=references)
    switched = [module for module in network.modules() if getattr(module, "turbo", False)]
    for module in switched:
        module.turbo = False  # as for a stock Wan file: ComfyUI's forward, on the same weights
    try:
        stock = velocity(network, context_latents=references)
    finally:
        for module in switched:
            module.turbo = True
    # float32 in another order of operations.
    assert relative_error(seen, stock) <= 1e-5
    assert relative_error(seen, alone) > 1e-2


def test_a_camera_moves_the_video_and_not_the_references(tmp_path):
    network = loaded(tmp_path / "cam.safetensors", lingbot.state_dict(61, "cam")).model.diffusion_model
    frames = CONDCamera(lingbot.camera_of()).concat([])
    camera = {"camera": frames.frames, "camera_repeats": frames.repeats}
    reference = [draw("reference", (1, 36, 1, 6, 6))]
    moved = velocity(network, 36, context_latents=reference, **camera)
    assert moved.shape == (1, 16, 3, 8, 12)
    assert relative_error(moved, velocity(network, 36, **camera)) > 1e-3
    assert relative_error(moved, velocity(network, 36, context_latents=reference)) > 1e-2


def test_a_layer_s_own_attention_is_used(network):
    self_attention = network.blocks[0].self_attn
    if not hasattr(self_attention, "comfy_attention"):
        pytest.skip("this ComfyUI knows no attention of a layer's own (its WanSelfAttention has no comfy_attention)")
    shapes = []

    def recorded(q, k, v, *args, **kwargs):
        q, k, v = (part if isinstance(part, torch.Tensor) else part.take() for part in (q, k, v))
        shapes.append(tuple(q.shape))
        return attention.attention_basic(q, k, v, *args, **kwargs)

    before = self_attention.comfy_attention.function
    self_attention.comfy_attention.function = recorded
    try:
        velocity(network)
    finally:
        self_attention.comfy_attention.function = before
    assert shapes == [(1, 72, 256)]
