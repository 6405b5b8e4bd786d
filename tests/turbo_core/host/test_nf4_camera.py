"""LingBot-World in 4 bits and in several files: the dense model, its camera included."""

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.checkpoint.layout import expected_shapes
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import run


def sample(model, camera: torch.Tensor | None) -> torch.Tensor:
    """One step from a start image, through ComfyUI's own sampling."""
    latent = torch.zeros(1, 16, 3, 8, 12)
    options = {
        "concat_latent_image": checkpoints.draw(3, "image", latent.shape),
        "concat_mask": torch.ones(1, 1, 3, 8, 12),
    }
    if camera is not None:
        options["camera_conditions"] = camera
    positive = [[checkpoints.draw(1, "text", (1, 16, 4096)), options]]
    return run(model, positive, {"samples": latent}, 3, 1, 0, 0.9, "ode", "cpu")["samples"]


@pytest.mark.parametrize("control", lingbot.CHANNELS)
def test_packed_and_in_parts_it_is_the_dense_model(control, tmp_path):
    packed = lingbot.packed(lingbot.state_dict(5, control, layers=1))
    weights = {key.removesuffix(".quant_map") for key in packed if key.endswith(".weight.quant_map")}
    dense = {key: value for key, value in packed.items() if ".weight." not in key}
    dense |= {key: lingbot.unpack(packed, key, torch.float32) for key in weights}
    models = [
        load_model(str(checkpoints.write_safetensors(tmp_path / "packed" / "model.safetensors", packed))),
        load_model(str(lingbot.write_shards(tmp_path / "packed-parts", packed, 3))),
        load_model(str(lingbot.write_shards(tmp_path / "dense-parts", dense, 3)), "fp32"),
    ]
    for model in models:
        parameters = dict(model.model.diffusion_model.named_parameters())
        assert {name: tuple(value.shape) for name, value in parameters.items()} == expected_shapes(model.model.spec)
        quantized = {name for name, value in parameters.items() if isinstance(value, QuantizedTensor)}
        assert quantized == (weights if model.model.spec.four_bit else set())
    camera = checkpoints.draw(4, "camera", (1, lingbot.CHANNELS[control], 3, 8, 12))
    for given in (camera, None):
        first, *others = (sample(model, given) for model in models)
        # The same numbers at another alignment in memory: the matrix library may sum in another order.
        assert all(relative_error(other, first) <= 1e-6 for other in others)
    assert relative_error(sample(models[0], camera), sample(models[0], None)) > 0.1
