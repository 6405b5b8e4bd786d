"""What the loader makes of real files: the right model, in the right precision, mapped and complete."""

import sys

import pytest
import torch
from comfy.ldm.wan.model import sinusoidal_embedding_1d
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import forward, loaded, relative_error
from td_pack.turbo_core.errors import CheckpointError
from td_pack.turbo_core.host.load import load_model

LATENT = (1, 16, 2, 8, 8)


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.upstream_state_dict(3, sla=True)


@pytest.fixture(scope="module")
def plain(state_dict, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("m") / "plain.pth", state_dict)


@pytest.mark.parametrize("variant", ["wrapped", "net", "checkpointed", "safetensors", "comfyui"])
def test_every_spelling_of_a_checkpoint_is_the_same_model(variant, state_dict, plain, tmp_path):
    path = tmp_path / ("model.safetensors" if variant in ("safetensors", "comfyui") else "model.pth")
    if variant == "safetensors":
        checkpoints.write_safetensors(path, state_dict)
    elif variant == "comfyui":
        conv = checkpoints.stock(3)["patch_embedding.weight"]
        saved = state_dict | {"patch_embedding.weight": conv}
        checkpoints.write_safetensors(path, {f"model.diffusion_model.{key}": value for key, value in saved.items()})
    elif variant == "checkpointed":
        infixed = {k.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): v for k, v in state_dict.items()}
        checkpoints.write_pth(path, infixed)
    else:
        checkpoints.write_pth(path, state_dict, wrap=variant == "wrapped", prefix="net." if variant == "net" else "")
    assert torch.equal(forward(load_model(str(path))), forward(plain))


@pytest.mark.parametrize("name,dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_dtype_is_what_was_asked_for(name, dtype, state_dict, plain, tmp_path):
    model = loaded(tmp_path / "model.pth", state_dict, name)
    assert model.model.get_dtype_inference() == dtype
    network = model.model.diffusion_model.to(dtype)
    x, context = (checkpoints.draw(5, n, s).to(dtype) for n, s in (("x", LATENT), ("context", (1, 8, 4096))))
    velocity = network(x, torch.tensor([932.0]), context=context)
    # Two layers of bf16 rounding (8 bits) on random weights; float32 agrees to the bit.
    assert relative_error(velocity, forward(plain)) <= {"bf16": 3e-2, "fp16": 5e-3, "fp32": 0}[name]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_weights_that_fit_stay_mapped_from_the_file(state_dict, tmp_path):
    path = checkpoints.write_pth(tmp_path / "model.pth", state_dict)
    model = load_model(str(path), "bf16")
    address = model.model.diffusion_model.blocks[0].ffn[0].weight.data_ptr()
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if str(path) in line]
    assert any(int(start, 16) <= address < int(end, 16) for start, end in spans)


def test_a_fast_model_is_refused_by_its_folder(tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "model.safetensors", lingbot.state_dict(5))
    (tmp_path / "config.json").write_text('{"_class_name": "WanModelFast", "local_attn_size": -1}')
    with pytest.raises(CheckpointError, match="is a WanModelFast by its config.json.*use a LingBot-World Base"):
        load_model(str(path))


def test_the_time_embedding_of_a_bf16_model_is_float32(state_dict, tmp_path):
    """ComfyUI rounds the sinusoid to the dtype of x, which would be off by up to 2^-9: one test in float32 cannot see
    it."""
    model = loaded(tmp_path / "model.pth", state_dict, "bf16")
    network, given = model.model.diffusion_model.to(torch.bfloat16), []
    network.blocks[0].register_forward_pre_hook(lambda *args: given.append(args[2]), with_kwargs=True)
    x, context = (checkpoints.draw(5, n, s).bfloat16() for n, s in (("x", LATENT), ("context", (1, 8, 4096))))
    network(x, torch.tensor([932.0]), context=context)
    layers = [layer for layer in (*network.time_embedding, *network.time_projection) if hasattr(layer, "weight")]
    e = sinusoidal_embedding_1d(256, torch.tensor([932.0])).double()
    for i, layer in enumerate(layers):  # linear, SiLU, linear, SiLU, linear
        e = torch.nn.functional.linear(
            torch.nn.functional.silu(e) if i else e, layer.weight.double(), layer.bias.double()
        )
    assert relative_error(given[0]["e"].flatten(), e.flatten()) < 1e-6
