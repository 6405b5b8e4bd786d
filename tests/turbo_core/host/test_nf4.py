"""4-bit checkpoints as ComfyUI models: the same outputs as the dense model that bitsandbytes unpacks, packed on every
memory path, and LoRAs exactly as on the dense model. A Wan model without camera: its linears are the same."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import LowVramPatch
from comfy.quant_ops import QuantizedTensor
from comfy_kitchen.tensor import get_layout_class
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import (
    SHAPE,
    loaded,
    relative_error,
    same,
    step,
    weights,
)
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.camera_model import CONDCamera
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.nf4 import LAYOUT, is_nf4

# On two linears of the model; small enough to be lost if the weights were packed again.
LORA = checkpoints.lora(layers={"blocks.0.self_attn.q": (256, 256), "blocks.1.ffn.0": (300, 256)}, size=0.05)


def dense(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint that bitsandbytes unpacks it to, in float32."""
    weights = {key.removesuffix(".quant_map") for key in packed if key.endswith(".weight.quant_map")}
    plain = {key: value for key, value in packed.items() if ".weight." not in key and key not in weights}
    return plain | {key: lingbot.unpack(packed, key, torch.float32) for key in weights}


@pytest.fixture(scope="module")
def packed():
    # 300: a width whose rows do not end where blocks of 64 do.
    return lingbot.packed(checkpoints.stock(43, ffn_dim=300))


@pytest.fixture(scope="module")
def paths(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return [
        str(checkpoints.write_safetensors(folder / f"{name}.safetensors", sd))
        for name, sd in (("packed", packed), ("dense", dense(packed)))
    ]


@pytest.fixture
def model(paths):
    return load_model(paths[0])


@pytest.fixture
def reference(paths):
    return load_model(paths[1], "fp32")


def test_every_linear_is_packed_and_nothing_else(model):
    named = dict(model.model.diffusion_model.named_parameters())
    quantized = {name for name, parameter in named.items() if isinstance(parameter, QuantizedTensor)}
    assert quantized == {name for name in named if lingbot.is_linear(name, named[name])}
    assert all(is_nf4(named[name]) for name in quantized) and "head.head.weight" in quantized
    assert not list(model.model.diffusion_model.named_buffers())
    assert get_layout_class(LAYOUT).__name__ == "TurboDiffusionNF4Layout"


def denoised(model) -> torch.Tensor:
    """One pass, from an image and along a camera if the model takes them."""
    control, given = model.model.spec.camera, {"c_crossattn": checkpoints.draw(1, "text", (1, 8, 4096))}
    if control:
        camera = checkpoints.draw(4, "camera", (1, lingbot.CHANNELS[control], 3, 8, 12))
        image = checkpoints.draw(3, "image", (1, 20, 3, 8, 12))
        given |= {"c_concat": image, "camera": CONDCamera(camera).concat([])}
    x = checkpoints.draw(2, "x", (1, 16, 3, 8, 12))
    with torch.inference_mode():
        return model.model.apply_model(x, torch.tensor([0.98765]), **given)


@pytest.mark.parametrize(
    "plain, double",
    [(checkpoints.stock(43, layers=1), True), (checkpoints.stock(43, layers=1), False)]
    + [(lingbot.state_dict(5, control, layers=1), True) for control in lingbot.CHANNELS],
    ids=["double", "single", *lingbot.CHANNELS],
)
def test_it_is_the_dense_model(plain, double, tmp_path):
    sd = lingbot.packed(plain, double=double)
    ours = loaded(tmp_path / "packed.safetensors", sd)
    theirs = loaded(tmp_path / "dense.safetensors", dense(sd), "fp32")
    for name, weight in theirs.model.diffusion_model.named_parameters():
        if lingbot.is_linear(name, weight):
            packed = dict(ours.model.diffusion_model.named_parameters())[name]
            assert is_nf4(packed) and torch.equal(packed.dequantize(), weight)
    given = denoised(ours)
    # The same numbers at another alignment in memory: the matrix library may sum in another order.
    assert relative_error(given, denoised(theirs)) <= 1e-6
    assert ours.model.calls["nf4 dequantize"] == sum(lingbot.is_linear(key, value) for key, value in plain.items())


def test_its_size_is_counted_packed(model, packed):
    stored = sum(
        value.numel() * value.element_size()
        for key, value in packed.items()
        if value.dtype == torch.uint8 or ".weight." in key
    )
    floats = sum(p.numel() * p.element_size() for p in model.model.parameters() if not isinstance(p, QuantizedTensor))
    # The description beside each weight is written anew and may be some bytes longer.
    assert model.model_size() == pytest.approx(stored + floats, rel=0.01)


@pytest.mark.parametrize("load", [{}, {"lowvram_model_memory": 1}], ids=["resident", "offloaded"])
def test_the_stock_lora_node_is_exact(model, reference, load):
    """As on the dense model, whose weights ComfyUI patches on the fly (offloaded): the same float32 sums."""
    changed, expected = (comfy.sd.load_lora_for_models(m, None, LORA, 0.7, 0)[0] for m in (model, reference))
    before, plain = weights(model), step(model)
    given = step(changed, **load)
    assert torch.equal(given, step(expected, lowvram_model_memory=1))
    assert relative_error(given, plain) > 1e-4
    assert same(weights(model), before) and torch.equal(step(model), plain)


def test_partial_unloading_does_not_add_a_lora_twice(model):
    changed, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.7, 0)
    expected = step(changed)
    clone = changed.clone()
    clone.patch_model(device_to=torch.device("cpu"))
    clone.partially_unload(torch.device("cpu"), 1 << 40)
    layer = clone.model.diffusion_model.blocks[0].self_attn.q
    assert sum(isinstance(function, LowVramPatch) for function in layer.weight_function) == 2
    x, context = checkpoints.draw(2, "x", SHAPE), checkpoints.draw(1, "text", (1, 8, 4096))
    given = clone.model.apply_model(x, torch.tensor([0.98765]), c_crossattn=context)
    clone.unpatch_model()
    assert torch.equal(given, expected)


@pytest.mark.parametrize("load", [{}, {"lowvram_model_memory": 1}], ids=["resident", "offloaded"])
def test_our_lora_node_runs_beside_the_weight(model, load):
    plain, before = step(model), weights(model)
    beside, found = with_lora(model, "test.safetensors", LORA, 0.7)
    assert len(found.layers) == 2 and not beside.patches
    expected = step(comfy.sd.load_lora_for_models(model, None, LORA, 0.7, 0)[0])
    # The same change in another order of float32 sums.
    assert relative_error(step(beside, **load) - plain, expected - plain) <= 1e-3
    assert torch.equal(step(model), plain) and same(weights(model), before)


def test_what_would_pack_a_weight_again_is_refused(model):
    with pytest.raises(TurboError, match="bf16 file"):
        QuantizedTensor.from_float(torch.zeros(2, 64), LAYOUT)
    changed, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.7, 0)
    with pytest.raises(TurboError, match="cannot be saved with a LoRA in it"):
        changed.patch_model(device_to=torch.device("cpu"), force_patch_weights=True)
    changed.unpatch_model()
