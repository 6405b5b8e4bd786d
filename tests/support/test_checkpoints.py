"""The tiny checkpoints are those that the golden outputs were computed with."""

import pytest
import torch
from td_pack.tests.support import checkpoints

CASES = ["t2v_dense", "i2v_two_experts_sde", "t2v_sla", "t2v_int8", "i2v_int8_sla_two_experts_ode"]


@pytest.mark.parametrize("name", CASES)
def test_the_recipe_draws_the_golden_inputs(name):
    case, tensors = checkpoints.golden_case(name)
    context = checkpoints.draw(case["seed"], "io.context", tuple(tensors["context"].shape))
    assert torch.equal(context.to(torch.bfloat16), tensors["context"])
    if case["kind"] == "i2v":
        image = checkpoints.draw(case["seed"], "io.image_latent", tuple(tensors["image_latent"].shape))
        assert torch.equal(image, tensors["image_latent"])


@pytest.mark.parametrize("name", CASES)
def test_noise_is_one_cpu_stream(name):
    case, tensors = checkpoints.golden_case(name)
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    draws = [torch.randn(tensors["x"].shape, generator=generator) for _ in range(1 + case["steps"])]
    assert torch.equal(draws[0], tensors["x"])
    assert torch.equal(torch.stack(draws[1:]), tensors["renoise"])


def test_the_quantizer_is_the_golden_one():
    _, tensors = checkpoints.golden_case("ops")
    codes, scale = checkpoints.quantize(tensors["int8.w"])
    assert torch.equal(codes, tensors["int8.wq"])
    torch.testing.assert_close(scale, tensors["int8.ws"], rtol=1e-6, atol=0)


def test_a_golden_checkpoint_has_upstream_keys():
    case, _ = checkpoints.golden_case("i2v_int8_sla_two_experts_ode")
    high, low = checkpoints.golden_state_dicts(case)
    assert high["patch_embedding.weight"].shape == (256, 36 * 4)
    assert high["blocks.0.ffn.0.int8_weight"].dtype == torch.int8
    assert high["blocks.0.ffn.0.scale"].shape == (4, 2)
    assert "blocks.0.ffn.0.weight" not in high
    assert high["blocks.1.self_attn.attn_op.local_attn.proj_l.weight"].dtype == torch.bfloat16
    assert high["blocks.0.norm3.weight"].dtype == torch.float32
    assert not torch.equal(high["head.head.weight"], low["head.head.weight"])


@pytest.mark.parametrize("wrap, prefix", [(False, ""), (True, "net.")])
def test_a_pth_reads_back(tmp_path, wrap, prefix):
    path = checkpoints.write_pth(tmp_path / "a.pth", {"w": torch.ones(2)}, wrap, prefix)
    read = torch.load(path, weights_only=True)
    assert torch.equal((read["state_dict"] if wrap else read)[f"{prefix}w"], torch.ones(2))


def test_the_tiny_vae_decodes_to_a_picture(tmp_path):
    import comfy.sd
    import comfy.utils

    path = checkpoints.write_safetensors(tmp_path / "vae.safetensors", checkpoints.vae_state_dict())
    vae = comfy.sd.VAE(comfy.utils.load_torch_file(str(path)))
    vae.throw_exception_if_invalid()
    frames = vae.decode(torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert frames.shape == (1, 9, 64, 64, 3)
    assert frames.isfinite().all() and frames.std() > 0.02
