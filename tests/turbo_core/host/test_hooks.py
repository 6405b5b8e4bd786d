"""LoRA hooks of conditioning: ComfyUI's own on float weights, refused in one sentence on quantised ones."""

import comfy.hooks
import comfy.sd
import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.experts import sample, text
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.load import load_model


def hooked(tensors: dict[str, torch.Tensor]) -> list:
    ((context, options),) = text()
    return [[context, options | {"hooks": comfy.hooks.create_hook_lora(tensors, 1.0, 0.0)}]]


def test_a_hook_on_float_weights_is_the_lora_and_leaves_them_as_they_were(t2v):
    tensors = {key: value for key, value in checkpoints.lora("diffusion_model").items() if "proj_l" not in key}
    plain = sample(t2v, text(), steps=2)
    patched, _ = comfy.sd.load_lora_for_models(t2v, None, tensors, 1.0, 0.0)
    expected = sample(patched, text(), steps=2)
    assert relative_error(sample(t2v, hooked(tensors), steps=2), expected) <= 1e-6 < relative_error(plain, expected)
    assert torch.equal(sample(t2v, text(), steps=2), plain)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_hook_on_quantised_weights_says_what_to_do_and_leaves_them_as_they_were(folder, kind):
    if kind == "int8":
        path = checkpoints.write_pth(folder / "int8.pth", checkpoints.upstream_state_dict(41, int8=True))
    else:
        state_dict = checkpoints.upstream_state_dict(43)
        state_dict["patch_embedding.weight"] = state_dict["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2))
        path = checkpoints.write_safetensors(
            folder / "nf4.safetensors", lingbot.packed({k: v.contiguous() for k, v in state_dict.items()})
        )
    model = load_model(str(path))
    plain = sample(model, text(), steps=1)
    with pytest.raises(TurboError, match="LoRA hooks cannot change int8 or 4-bit weights"):
        sample(model, hooked(checkpoints.lora("diffusion_model")), steps=1)
    assert torch.equal(sample(model, text(), steps=1), plain)
