"""Every Wan variant that ComfyUI has: loaded by the pack it samples what ComfyUI's own loader and conditioning nodes
give, and its self-attention can be sparse."""

import json
import re
from pathlib import Path

import comfy.clip_vision
import comfy.ldm.wan.model as wan
import comfy.ops
import comfy.sd
import pytest
import safetensors.torch
import torch
from comfy.ldm.wan.model_animate import AnimateWanModel
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_extras import nodes_wan
from td_pack.tests.support import checkpoints, tensors, vaes
from td_pack.turbo_core.checkpoint import variants
from td_pack.turbo_core.checkpoint.layout import PROJ_L
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import CheckpointError, TurboError
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model

from nodes import common_ksampler

WIDTH, HEIGHT, LENGTH = 64, 32, 5
SIZE = (WIDTH, HEIGHT, LENGTH, 1)


def network(name, cls=wan.WanModel, layers=2, **options):
    sizes = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": layers, "cross_attn_norm": True}
    device = torch.device("meta")
    return name, cls(operations=comfy.ops.disable_weight_init, device=device, dtype=torch.float32, **sizes | options)


def picture(frames=1, seed=1):
    return tensors.draw(frames, HEIGHT, WIDTH, 3, seed=seed).sigmoid()


def clip_vision():
    output = comfy.clip_vision.Output()
    output.penultimate_hidden_states = tensors.draw(1, 257, 1280, seed=7)
    return output


def t2v(text, vae):
    return text, text, {"samples": torch.zeros(1, 16, 2, HEIGHT // 8, WIDTH // 8)}


def ti2v(text, vae):
    return text, text, {"samples": torch.zeros(1, 48, 2, HEIGHT // 16, WIDTH // 16)}


def given(node, *args, **options):
    """The conditioning and the latent of a stock node; `args` stand after the size."""
    return lambda text, vae: node.execute(text, text, vae, *SIZE, *args, **options).args[:3]


def s2v(text, vae):
    audio = {"encoded_audio_all_layers": [tensors.draw(1, 20, 1024, seed=9)] * 25, "audio_samples": 6400}
    node = nodes_wan.WanSoundImageToVideo
    return node.execute(text, text, vae, *SIZE, ref_image=picture(), audio_encoder_output=audio).args[:3]


def fun_camera(text, vae):
    from comfy_extras.nodes_camera_trajectory import WanCameraEmbedding

    poses = WanCameraEmbedding.execute("Zoom In", WIDTH, HEIGHT, LENGTH, 1.0, 0.5, 0.5, 0.5, 0.5).args[0]
    node = nodes_wan.WanCameraImageToVideo
    return node.execute(text, text, vae, *SIZE, start_image=picture(), camera_conditions=poses).args[:3]


# By name: the network, the conditioning, and the sparse layers
VARIANTS = {
    "T2V": (network("T2V"), t2v, 2),
    "I2V 2.1": (
        network("I2V", model_type="i2v", in_dim=36),
        given(nodes_wan.WanImageToVideo, start_image=picture(), clip_vision_output=clip_vision()),
        2,
    ),
    "FLF2V": (
        network("I2V", model_type="i2v", in_dim=36, flf_pos_embed_token_number=514),
        given(
            nodes_wan.WanFirstLastFrameToVideo,
            start_image=picture(),
            end_image=picture(seed=2),
            clip_vision_start_image=clip_vision(),
            clip_vision_end_image=clip_vision(),
        ),
        2,
    ),
    "I2V A14B": (network("I2V", in_dim=36), given(nodes_wan.WanImageToVideo, start_image=picture()), 2),
    "Fun InP": (
        network("I2V", model_type="i2v", in_dim=36),
        given(nodes_wan.WanFunInpaintToVideo, start_image=picture(), end_image=picture(seed=2)),
        2,
    ),
    "Fun Control 2.1": (
        network("Fun Control", model_type="i2v", in_dim=48),
        given(nodes_wan.WanFunControlToVideo, control_video=picture(LENGTH), clip_vision_output=clip_vision()),
        2,
    ),
    "Fun Control 2.2": (
        network("Fun Control", in_dim=52, in_dim_ref_conv=16),
        given(nodes_wan.Wan22FunControlToVideo, ref_image=picture(), control_video=picture(LENGTH)),
        2,
    ),
    "Fun Camera 2.1": (network("Fun Camera", wan.CameraWanModel, model_type="camera", in_dim=32), fun_camera, 2),
    "Fun Camera 2.2": (network("Fun Camera", wan.CameraWanModel, model_type="camera_2.2", in_dim=36), fun_camera, 2),
    "VACE": (
        network("VACE", wan.VaceWanModel, model_type="vace", vace_layers=1, vace_in_dim=96),
        given(nodes_wan.WanVaceToVideo, 1.0, control_video=picture(LENGTH)),
        3,
    ),
    "S2V": (network("S2V", wan.WanModel_S2V, model_type="s2v"), s2v, 2),
    "Animate": (
        network("Animate", AnimateWanModel, layers=5, in_dim=36),
        lambda text, vae: nodes_wan.WanAnimateToVideo.execute(
            text, text, vae, *SIZE, 5, 0, reference_image=picture(), pose_video=picture(LENGTH)
        ).args[:3],
        5,
    ),
    "TI2V": (network("TI2V", in_dim=48, out_dim=48), ti2v, 2),
    "HuMo": (network("", wan.HumoWanModel, model_type="humo"), t2v, 0),
}


@pytest.fixture(scope="module")
def vae():
    return vaes.wan21()


@pytest.fixture(params=VARIANTS)
def variant(request, tmp_path):
    (name, network), conditioning, layers = VARIANTS[request.param]
    weights = {k: checkpoints.weight(6, k, tuple(v.shape)).float() for k, v in network.state_dict().items()}
    return name, str(checkpoints.write_safetensors(tmp_path / "wan.safetensors", weights)), conditioning, layers


def load(path, loader=load_model):
    """The model, with copies of its weights: torch's CPU kernels sum in another order over mapped ones, which are not
    aligned."""
    model = loader(path)
    for parameter in model.model.parameters():
        parameter.data = parameter.data.clone()
    return model


def sample(model, conditioning, vae):
    text = [[tensors.draw(1, 8, 4096, seed=3), {}]]
    positive, negative, latent = conditioning(text, vae)
    return common_ksampler(model, 1, 2, 1.0, "euler", "simple", positive, negative, latent)[0]["samples"]


def test_it_is_comfyuis_bit_for_bit(variant, vae, caplog):
    name, path, conditioning, _ = variant
    with caplog.at_level("INFO"):
        ours, theirs = load(path), load(path, comfy.sd.load_diffusion_model)
    assert ("wan.safetensors is a WAN21_HuMo, which this pack has no entry for" in caplog.text) == (not name)
    assert ours.model.spec.variant == name and isinstance(ours.model, type(theirs.model))
    assert getattr(ours.model, "image_to_video", False) == getattr(theirs.model, "image_to_video", False)
    assert torch.equal(sample(ours, conditioning, vae), sample(theirs, conditioning, vae))


KINDS = {"WAN21_FlowRVS": {"model_type": "flow_rvs"}, "WAN21_CausalAR": {"model_type": "t2v", "causal_ar": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_only_the_metadata_names_is_comfyuis_too(kind, vae, tmp_path, caplog):
    """Its tensors are those of T2V; it stays what it is when it is converted."""
    _, network = VARIANTS["T2V"][0]
    weights = {k: checkpoints.weight(6, k, tuple(v.shape)).float() for k, v in network.state_dict().items()}
    stated = {"config": json.dumps({"transformer": KINDS[kind]})}
    path = str(checkpoints.write_safetensors(tmp_path / "wan.safetensors", weights, stated))
    with caplog.at_level("INFO"):
        ours, theirs = load(path), load(path, comfy.sd.load_diffusion_model)
    assert f"wan.safetensors is a {kind}, which this pack has no entry for" in caplog.text
    assert type(theirs.model).__name__ == kind and isinstance(ours.model, type(theirs.model))
    assert torch.equal(sample(ours, t2v, vae), sample(theirs, t2v, vae))
    convert(Request(Path(path), tmp_path / "new.safetensors"))
    assert isinstance(load_model(str(tmp_path / "new.safetensors")).model, type(theirs.model))


def test_its_self_attention_is_sparse_where_it_is_asked_to_be(variant, vae):
    """Two steps; a top-k of 1 attends to every block, so only the order of the sums differs from dense attention."""
    name, path, conditioning, layers = variant
    model = load(path)
    if not name:
        with pytest.raises(TurboError, match="runs as ComfyUI runs it"):
            with_attention(model, "sla", 1.0, "", True)
        return
    dense = sample(model, conditioning, vae)
    assert (model.model.calls["dense attention"], model.model.calls["sparse attention"]) == (2 * layers, 0)
    model.model.calls.clear()
    sparse = sample(with_attention(model, "sla", 1.0, "1", True), conditioning, vae)
    assert (model.model.calls["dense attention"], model.model.calls["sparse attention"]) == (2, 2 * (layers - 1))
    assert tensors.relative(sparse, dense) < 1e-4


def test_turbodiffusions_numerics_are_its_function(variant, vae, tmp_path):
    """In float32 only the order of a few operations differs from the stock network's, on the inputs of a stock run."""
    name, path, conditioning, layers = variant
    if not name:
        return
    weights = safetensors.torch.load_file(path)
    for i in range(layers - (name == "VACE")):
        shapes = {"weight": (128, 128), "bias": (128,)}
        weights |= {f"blocks.{i}.{PROJ_L}.{kind}": torch.zeros(shape) for kind, shape in shapes.items()}
    turbo = load(checkpoints.write_safetensors(tmp_path / "turbo.safetensors", weights))
    assert turbo.model.spec.turbo and turbo.model.spec.variant == name
    dense = with_attention(turbo, "dense", 0.1, "", False)
    dense.patch_model()
    stock, calls = comfy.sd.load_diffusion_model(path), []
    stock.model.diffusion_model.register_forward_pre_hook(lambda *given: calls.append(given[1:]), with_kwargs=True)
    sample(stock, conditioning, vae)
    assert len(calls) == 2
    for args, kwargs in list(calls):
        want = stock.model.diffusion_model(*args, **kwargs)
        assert tensors.relative(dense.model.diffusion_model(*args, **kwargs), want) < 1e-5


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("HuMo", "TI2V")], indirect=True)
def test_it_becomes_turbo_by_the_delta_of_another_model(variant, vae, tmp_path):
    name, path, conditioning, layers = variant
    main = layers - (name == "VACE")
    sizes = {"dim": 256, "ffn_dim": 512, "layers": main}
    turbo = checkpoints.write_pth(tmp_path / "turbo.pth", checkpoints.upstream_state_dict(1, **sizes, sla=True))
    teacher = checkpoints.write_safetensors(tmp_path / "teacher.safetensors", checkpoints.stock(2, **sizes))
    output = tmp_path / "out.safetensors"
    convert(Request(turbo, output, "int8_block", base=Path(path), teacher=teacher, delta=0.1))
    model = load_model(str(output))
    spec = model.model.spec
    assert (spec.variant, spec.turbo, spec.sla, spec.int8) == (name, True, True, True)
    assert (spec.trained_as, spec.sigma_max) == ("T2V", 80)  # as the turbo model, whatever the base takes
    codes = [key for key, tensor in safetensors.torch.load_file(output).items() if tensor.dtype == torch.int8]
    assert len(codes) == 10 * layers + 2 * main * spec.image_embedding + 2 * (name == "VACE")
    assert torch.isfinite(sample(model, conditioning, vae)).all()
    assert model.model.calls["sparse attention"] == 2 * main
    assert model.model.calls["dense attention"] == 2 * (layers - main)


@pytest.mark.parametrize("variant", ["T2V", "VACE"], indirect=True)
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "nvfp4", "mxfp8", "scaled fp8"])
def test_comfyuis_quantized_files_of_it(kind, variant, vae, tmp_path):
    """Quantized by comfy_kitchen, or as older files are: the latents of ComfyUI's own loader."""
    _, path, conditioning, _ = variant
    old = kind == "scaled fp8"
    layout = QUANT_ALGOS["float8_e4m3fn" if old else kind]["comfy_tensor_layout"]
    mark, quantized = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8), {}
    for key, value in safetensors.torch.load_file(path).items():
        if value.ndim == 2 and "blocks." in key:
            codes = QuantizedTensor.from_float(value.bfloat16(), layout).state_dict(key)
            scale = "scale_weight" if old else "weight_scale"
            quantized |= {re.sub("weight(_block)?_scale", scale, name): part for name, part in codes.items()}
            if not old:
                quantized[key.replace("weight", "comfy_quant")] = mark.clone()
        else:
            quantized[key] = value
    if old:
        quantized["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    file = str(checkpoints.write_safetensors(tmp_path / "quantized.safetensors", quantized))
    ours, theirs = load(file), load(file, comfy.sd.load_diffusion_model)
    assert torch.equal(sample(ours, conditioning, vae), sample(theirs, conditioning, vae))


NEEDS = [name for name, ((kind, _), *_) in VARIANTS.items() if kind and variants.variant(kind).needs]


@pytest.mark.parametrize("variant", NEEDS, indirect=True)
def test_what_it_needs_is_named_before_a_step(variant, vae):
    name, path, *_ = variant
    with pytest.raises(TurboError, match="pass the conditioning through Wan"):
        sample(load(path), t2v, vae)


CRAFTED = {
    "an embedding without channels": ({"vace_patch_embedding.weight": torch.zeros(8)}, "cannot build .*out of range"),
    "no control block": ({"vace_blocks.": None}, "cannot build .*by zero"),
    "more control blocks than blocks": (
        {f"vace_blocks.{i}.norm3.bias": torch.zeros(256) for i in range(4)},
        "cannot build .*must not be zero",
    ),
    "a block of a high number": ({"vace_blocks.1000.norm3.bias": torch.zeros(256)}, "unexpected: vace_blocks.1000"),
}


@pytest.mark.parametrize("change, message", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_variant_is_refused_in_a_sentence(tmp_path, change, message):
    (_, network), *_ = VARIANTS["VACE"]
    weights = {k: torch.zeros(v.shape) for k, v in network.state_dict().items()}
    removed = tuple(name for name, tensor in change.items() if tensor is None)
    kept = {name: tensor for name, tensor in weights.items() if not (removed and name.startswith(removed))}
    kept |= {name: tensor for name, tensor in change.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        load_model(str(checkpoints.write_safetensors(tmp_path / "vace.safetensors", kept)))


def test_a_missing_or_foreign_tensor_is_named(tmp_path):
    (_, network), *_ = VARIANTS["VACE"]
    weights = {k: torch.zeros(v.shape) for k, v in network.state_dict().items()}
    del weights["vace_blocks.0.after_proj.bias"]
    path = checkpoints.write_safetensors(
        tmp_path / "vace.safetensors", weights | {"vace_adapter.weight": torch.zeros(1)}
    )
    with pytest.raises(
        CheckpointError, match="1 missing: vace_blocks.0.after_proj.bias. 1 unexpected: vace_adapter.weight"
    ):
        load_model(str(path))
