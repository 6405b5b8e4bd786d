"""Loaded models and conditioning of the golden cases, in this process."""

from pathlib import Path

import comfy.sd
import torch
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import run

from . import checkpoints

SHAPE = (1, 16, 3, 16, 16)  # 192 tokens: 3 key blocks, so that sparsity is real


def load_case(case: dict, folder: Path) -> list:
    """The ModelPatchers of a golden case, high expert first, loaded from `.pth` files in upstream's layout."""
    models = []
    for i, state_dict in enumerate(checkpoints.golden_state_dicts(case)):
        model = loaded(folder / f"expert{i}.pth", state_dict, activations=case.get("activations", "upstream"))
        models.append(with_attention(model, "sla", case["sla_topk"], "", False) if case["sla_topk"] else model)
    return models


def loaded(path: Path, state_dict: dict[str, torch.Tensor], *options, **more):
    """The ModelPatcher of a checkpoint that is written to `path`, in the format of its suffix."""
    return load_model(str(checkpoints.write(path, state_dict)), *options, **more)


def conditioning(case: dict, tensors: dict[str, torch.Tensor], latent_format) -> list:
    """ComfyUI CONDITIONING of a golden case: its text and, for I2V, its image on latent frame 0."""
    options = {}
    if case["kind"] == "i2v":
        image = tensors["image_latent"]
        mask = torch.ones(1, 1, *image.shape[2:])
        mask[:, :, 0] = 0  # known, in ComfyUI's polarity
        options = {"concat_latent_image": latent_format.process_out(image), "concat_mask": mask}
    return [[tensors["context"].float(), options]]


def stock_model(seed: int):
    """The ModelPatcher that ComfyUI's own loader makes of a stock file."""
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.stock(seed))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of the network's tensors as they are saved; of a quantized weight the codes and scales."""
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def sample(model, steps: int = 1, low=None) -> torch.Tensor:
    """The latent of a text-to-video run, by ComfyUI's own sampling."""
    positive = [[checkpoints.draw(1, "text", (1, 8, 4096)), {}]]
    return run(model, positive, {"samples": torch.zeros(SHAPE)}, 3, steps, 0, 0.9, "ode", "cpu", low)["samples"]


def forward(model) -> torch.Tensor:
    """One pass through the network as it is, of a text-to-video model."""
    x, context = checkpoints.draw(5, "x", (1, 16, 2, 8, 8)), checkpoints.draw(5, "context", (1, 8, 4096))
    return model.model.diffusion_model(x, torch.tensor([932.0]), context=context)


def step(model, shape: tuple[int, ...] = SHAPE, **load) -> torch.Tensor:
    """One pass through the network of a clone while it is loaded, by default completely."""
    clone = model.clone()
    clone.patch_model(device_to=torch.device("cpu"), **load)
    clone.model.calls.clear()
    x, context = checkpoints.draw(2, "x", shape), checkpoints.draw(1, "text", (1, 8, 4096))
    try:
        assert bool(clone.model.model_lowvram) == ("lowvram_model_memory" in load)
        return clone.model.apply_model(x, torch.tensor([0.98765]), c_crossattn=context)
    finally:
        clone.unpatch_model()


def compiled_by(backend: str, model):
    """What the stock TorchCompileModel node does, with another backend. Forgets the graph breaks so far."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
    from torch._dynamo.utils import counters

    counters.clear()
    clone = model.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=clone, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict})
    return clone


def only_comfyui_breaks_graphs() -> bool:
    """ComfyUI's attention for CPUs reads the free memory from a file, which breaks a graph of torch.compile; the pack
    must not."""
    from torch._dynamo.utils import counters

    return all("builtin operator `open`" in reason for reason in counters["graph_break"])
