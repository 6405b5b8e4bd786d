"""Dynamic VRAM, the default on NVIDIA, gives what ComfyUI's other patcher gives, bit for bit; emulated, see
support/dynamic_vram.py."""

from collections import Counter
from functools import partial
from typing import NamedTuple

import comfy.hooks
import comfy.model_management
import comfy.model_prefetch
import comfy.sd
import comfy.utils
import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.dynamic_vram import POLICIES, DynamicVRAM
from td_pack.tests.support.experts import image_text, sample, text
from td_pack.tests.support.models import same, weights
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import CheckpointError, TurboError
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora

SHAPE = (1, 16, 3, 16, 16)  # 192 tokens: 3 key blocks, so that sparsity is real
LORA = checkpoints.lora("diffusion_model")


# What must have happened to the weights, so that each policy is seen to be one.
KINDS = {
    "all resident": {"filled", "resident"},
    "nothing fits": {"refused"},
    "half fits": {"refused", "filled", "resident"},
    "evicted at random": {"filled", "resident", "evicted"},
}


class Result(NamedTuple):
    latent: torch.Tensor
    calls: Counter  # of operators and kinds of layer


def sampled(high, positive, low=None, steps: int = 2) -> Result:
    return Result(sample(high, positive, low, steps, latent={"samples": torch.zeros(SHAPE)}), Counter(high.model.calls))


def stock_lora(model):
    return comfy.sd.load_lora_for_models(model, None, LORA, 1.0, 0.0)[0]


def pack_lora(model, tensors=LORA):
    return with_lora(model, "test.safetensors", tensors, 1.0)[0]


def one_model(files, kind: str) -> list[Result]:
    """Clones of one model in turn, the plain one again last."""
    model = load_model(str(files[kind]), "fp32")
    return [sampled(m, text()) for m in (model, pack_lora(model), stock_lora(model), model)]


def camera(files) -> list[Result]:
    model = load_model(str(files["camera"]), "fp32")
    poses = {"camera_conditions": checkpoints.draw(4, "camera", (1, lingbot.CHANNELS["cam"], *SHAPE[2:]))}
    return [sampled(model, image_text(shape=SHAPE, **options)) for options in (poses, {})]


def two_experts(files) -> list[Result]:
    high, low = (load_model(str(files[name]), "fp32") for name in ("high", "low"))
    pairs = (high, low), (pack_lora(high), stock_lora(low))
    return [sampled(one, image_text(shape=SHAPE), other, steps=4) for one, other in pairs]


CASES = {"camera": camera, "two experts": two_experts} | {
    kind: partial(one_model, kind=kind) for kind in ("int8", "int8 by channel", "nf4", "float")
}


def run_case(name: str, files) -> list[Result]:
    with torch.inference_mode():
        results = CASES[name](files)
        comfy.model_management.unload_all_models()
    return results


@pytest.fixture(autouse=True)
def inference_mode():
    """As ComfyUI's server runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory, one_thread):
    """Checkpoints with two blocks, so that there is one to prefetch; int8 and float ones run SLA."""
    folder = tmp_path_factory.mktemp("models")
    state_dicts = {
        "int8.pth": checkpoints.upstream_state_dict(41, sla=True, int8=True),
        "high.pth": checkpoints.upstream_state_dict(21, in_channels=36, sla=True, int8=True),
        "low.pth": checkpoints.upstream_state_dict(22, in_channels=36, sla=True, int8=True),
        "float.safetensors": checkpoints.upstream_state_dict(11, sla=True),
        "nf4.safetensors": lingbot.packed(checkpoints.stock(43)),
        "camera.safetensors": lingbot.packed(lingbot.state_dict(5, layers=2)),
    }
    paths = {name.partition(".")[0]: checkpoints.write(folder / name, sd) for name, sd in state_dicts.items()}
    path = folder / "channels.safetensors"
    convert(Request(model=paths["float"], output=path, weights="int8_rowwise"))
    return paths | {"int8 by channel": path}


@pytest.fixture(scope="module", params=CASES)
def case(request, files):
    """A case, and its results with the legacy patcher.

    ComfyUI rounds an int8 weight with a stock LoRA in it stochastically, by a seed from the weight's name; the legacy
    patcher takes `layer.weight` and the dynamic one `layer`, so that their weights differ by one code here and there.
    Here both take `layer`."""
    seed_of = comfy.utils.string_to_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.utils, "string_to_seed", lambda name: seed_of(name.removesuffix(".weight")))
        return request.param, run_case(request.param, files)


@pytest.fixture
def accelerator(request, monkeypatch):
    name = getattr(request, "param", "all resident")
    accelerator = DynamicVRAM(POLICIES[name]())
    accelerator.name = name
    accelerator.install(monkeypatch)
    return accelerator


@pytest.mark.parametrize("accelerator", POLICIES, indirect=True)
def test_it_is_the_legacy_patcher_bit_for_bit(case, accelerator, files):
    name, expected = case
    results = run_case(name, files)
    assert [torch.equal(result.latent, other.latent) for result, other in zip(results, expected, strict=True)] == [
        True
    ] * len(expected)
    assert [result.calls for result in results] == [other.calls for other in expected]
    assert accelerator.pins == 0
    if name != "nf4":  # whose file runs ComfyUI's own forward, which does not prefetch
        # Each layer of a block was on its way before the block ran; the few outside of blocks are fetched when they
        # run.
        assert any(".blocks.1." in layer for layer in accelerator.prefetched)
        assert not [layer for layer in accelerator.alone if ".blocks." in layer]
    happened = {kind for kind, count in accelerator.faults.items() if count}
    assert happened == KINDS[accelerator.name]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_model_is_not_saved(kind, accelerator, files, tmp_path):
    model = load_model(str(files[kind]), "fp32")
    with pytest.raises(TurboError, match="^ComfyUI cannot save an int8 or 4-bit model .* with TurboDiffusionConvert.$"):
        comfy.sd.save_checkpoint(str(tmp_path / "out.safetensors"), stock_lora(model))
    with pytest.raises(TurboError, match="LoRA of TurboDiffusionLoRA on it.*TurboDiffusionConvert"):
        comfy.sd.save_checkpoint(str(tmp_path / "out.safetensors"), pack_lora(model))
    comfy.model_management.unload_all_models()
    assert not list(tmp_path.iterdir()) and accelerator.pins == 0


def test_an_offloaded_int8_model_is_not_saved_either(files, tmp_path):
    """The legacy patcher, which leaves most weights on the CPU."""
    model = load_model(str(files["int8"]), "fp32")
    model.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=1)
    with pytest.raises(TurboError, match="TurboDiffusionConvert"):
        model.state_dict_for_saving()
    model.unpatch_model()


def test_a_float_model_is_saved(accelerator, files, tmp_path):
    model = load_model(str(files["float"]), "bf16")
    comfy.sd.save_checkpoint(str(tmp_path / "out.safetensors"), model)
    original, written = (load_model(str(path), "bf16") for path in (files["float"], tmp_path / "out.safetensors"))
    assert written.model.spec == original.model.spec and same(weights(written), weights(original))
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("kind", ["int8", "nf4", "float"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_legacy_patcher_that_it_hands_out_has_the_declared_dtypes(kind, dtype, files, monkeypatch):
    legacy = load_model(str(files[kind]), dtype)
    DynamicVRAM(POLICIES["all resident"]()).install(monkeypatch)
    dynamic = load_model(str(files[kind]), dtype)
    assert dynamic.is_dynamic()
    delegate = dynamic.get_non_dynamic_delegate()
    assert not delegate.is_dynamic() and delegate.model is not dynamic.model
    dtypes = [{name: p.dtype for name, p in m.model.diffusion_model.named_parameters()} for m in (delegate, legacy)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize(
    "end", [-1000, 5000, 60, 8, 3], ids=["tensors", "header", "header start", "length", "no length"]
)
@pytest.mark.parametrize("kind", ["nf4", "float"])
def test_a_cut_file_is_reported_as_without_dynamic_vram(kind, end, files, monkeypatch, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(files[kind].read_bytes()[:end])
    with pytest.raises(CheckpointError, match="^cut.safetensors .*; download it again.$") as legacy:
        load_model(str(path))
    DynamicVRAM(POLICIES["all resident"]()).install(monkeypatch)
    with pytest.raises(CheckpointError) as dynamic:
        load_model(str(path))
    assert str(dynamic.value) == str(legacy.value)
    assert end != -1000 or "is cut short: its end is missing" in str(dynamic.value)
