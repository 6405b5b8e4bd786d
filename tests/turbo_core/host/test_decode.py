"""The streaming decode: ComfyUI's bits, an honest estimate of its memory, and what happens when memory runs out."""

import copy
import functools

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.wan import vae as wan21_module
from comfy.ldm.wan import vae2_2 as wan22_module
from comfy.taesd.taehv import TAEHV
from td_pack.kernels import use_backend
from td_pack.tests.support import vaes
from td_pack.tests.support.allocations import PeakBytes
from td_pack.tests.support.traffic import decoder_traffic
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host import decode as module
from td_pack.turbo_core.host import vae_chunks
from td_pack.turbo_core.host.decode import (
    chunk_memory,
    decode,
    decode_images,
    decoded_shape,
    latent_of,
    stock_decode,
    to_8_bit,
)
from td_pack.turbo_core.host.vae_chunks import can_stream, chunk_decoder
from td_pack.turbo_core.strips import OVERLAP


@pytest.fixture(scope="module")
def wan21() -> comfy.sd.VAE:
    return vaes.wan21()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def latent(channels: int, length: int, height: int = 2, width: int = 3, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length * 100 + width)
    return torch.randn(batch, channels, length, height, width, generator=generator)


@pytest.fixture(scope="module")
def make():
    """Makes each VAE once."""
    kinds = {
        "2.1": vaes.wan21,
        "2.1 in bfloat16": lambda: vaes.wan21(torch.bfloat16),
        "2.2": vaes.wan22,
        "lighttaew2_1": vaes.taehv,
        "lighttaew2_2": lambda: vaes.taehv(48),
        "taehv": lambda: vaes.taehv(dtype=torch.float16),
    }
    return functools.cache(lambda kind: kinds[kind]())


@pytest.mark.parametrize(
    "kind,length,batch",
    [
        *(("2.1", *each) for each in ((1, 1), (2, 2), (3, 1), (4, 1), (5, 2))),
        ("2.1 in bfloat16", 3, 1),
        ("2.2", 1, 1),
        ("2.2", 3, 1),
        *(("lighttaew2_1", *each) for each in ((1, 1), (3, 1), (4, 2))),
        ("lighttaew2_2", 3, 1),
        ("taehv", 3, 1),
    ],
)
def test_the_bits_are_those_of_comfyui(make, kind, length, batch):
    vae = make(kind)
    z = latent(vae.latent_channels, length, batch=batch)
    images = decode_images(vae, z)
    scale = 16 if vae.latent_channels == 48 else 8
    assert images.shape == (batch * (4 * length - 3), 2 * scale, 3 * scale, 3) == decoded_shape(vae, z)
    assert torch.equal(images, stock_decode(vae, z)) and images.is_contiguous() and images.std() > 0


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_as_an_nvidia_gpu_decodes(wan21, backend, monkeypatch):
    """Channels last, and by the kernel, which is interpreted here."""
    z = latent(16, 5, batch=2)
    monkeypatch.setattr(vae_chunks, "fastest_memory_format", lambda *_: torch.channels_last_3d)
    with use_backend(backend):
        images = decode_images(wan21, z)
    # Thirty convolutions and sums in float32, in another order.
    torch.testing.assert_close(images, stock_decode(wan21, z), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel computes in 16 bits on a GPU alone")
def test_on_a_gpu_16_bits_are_closer_to_float32_than_comfyuis():
    """The kernel rounds once where ComfyUI's operators round five times."""
    vae = vaes.wan21(torch.bfloat16)
    z = latent(16, 3, 4, 4).bfloat16().float()
    exact = vaes.wan21()
    exact.first_stage_model = copy.deepcopy(vae.first_stage_model).cpu().float()
    expected = exact.process_output(exact.first_stage_model.decode(z).movedim(1, -1)).flatten(0, 1)
    ours, comfyuis = ((images.cpu() - expected).norm() for images in (decode_images(vae, z), stock_decode(vae, z)))
    assert ours < comfyuis < 2e-2 * expected.norm()


def test_a_decoder_with_other_layers_is_run_by_comfyui():
    """As a later ComfyUI may have them."""

    class Layer(torch.nn.Module):
        def forward(self, x, feat_cache=None, feat_idx=None):
            return x * 2

    vae, z, runs = vaes.wan21(), latent(16, 3), []
    vae.first_stage_model.decoder.register_forward_hook(lambda *_: runs.append(1))
    decode_images(vae, z)
    assert not runs
    vae.first_stage_model.decoder.upsamples.append(Layer())
    images = decode_images(vae, z)
    assert len(runs) == 2 and torch.equal(images, stock_decode(vae, z))


@pytest.mark.parametrize("size", [(480, 832), (720, 1280)])
def test_a_chunk_moves_less_than_half_of_the_bytes(size):
    """What a GPU moves between the convolutions, in less than half of the launches (docs/benchmarks/decode.md)."""
    before, after = (decoder_traffic(*size, ours).without_convolutions() for ours in (False, True))
    assert all(now < 0.45 * then for now, then in zip(after, before, strict=True))


def test_another_vae_is_decoded_by_comfyui():
    vae = vaes.taesd()
    z = torch.randn(2, 4, 2, 2)
    assert torch.equal(decode_images(vae, latent_of(vae, {"samples": z})), vae.decode(z))


def test_an_image_model_in_wan_22s_class_is_decoded_by_comfyui(monkeypatch):
    """Later hosts load Qwen Image 2.1 into it, whose latents are images [B, C, h, w]: there latent_dim is 2. The hosts
    that are tested have no such decode, so its call is what can be seen."""
    vae, z, image = vaes.wan22(), torch.randn(1, 48, 2, 2), torch.rand(1, 32, 32, 4)
    assert can_stream(vae)
    vae.latent_dim = 2
    monkeypatch.setattr(vae, "decode", lambda latent: image if latent is z else None)
    assert not can_stream(vae) and decode_images(vae, latent_of(vae, {"samples": z})) is image


def test_eight_bit_frames_come_in_order_and_as_they_are_done(wan21):
    z = latent(16, 4)
    frames = torch.empty(decoded_shape(wan21, z), dtype=torch.uint8)
    seen = []
    decode(wan21, z, frames, seen.append)
    assert torch.equal(frames, to_8_bit(decode_images(wan21, z)))
    assert seen == [1, 9, 13, 13]  # a frame, then chunks of two and of one latent frame, then the item


def test_items_that_are_decoded_one_at_a_time_come_in_order():
    vae, z, seen = vaes.wan21(), latent(16, 2, batch=2), []
    vae.memory_used_decode = lambda shape, dtype: 1e15  # of all items together
    decode(vae, z, torch.empty(decoded_shape(vae, z)), seen.append)
    assert seen == [1, 5, 5, 6, 10, 10]


@pytest.mark.parametrize("kind", ["2.1", "lighttaew2_1"])
def test_an_interrupt_ends_it_before_the_next_chunk(make, kind):
    seen = []

    def interrupt(stop: int) -> None:
        seen.append(stop)
        comfy.model_management.interrupt_current_processing(True)

    vae = make(kind)
    z = latent(16, 4)
    images = torch.zeros(decoded_shape(vae, z))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        decode(vae, z, images, interrupt)
    assert seen == [1] and images[0].any() and not images[1:].any()


def test_a_taehv_writes_the_frames_of_one_latent_frame_at_a_time(make):
    vae, seen = make("lighttaew2_1"), []
    z = latent(16, 3)
    frames = torch.empty(decoded_shape(vae, z), dtype=torch.uint8)
    decode(vae, z, frames, seen.append)
    assert torch.equal(frames, to_8_bit(stock_decode(vae, z)))
    assert seen == [1, 5, 9, 9]


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("height,width", [(2, 24), (24, 2)])
def test_running_out_of_memory_goes_on_in_strips(at, height, width, caplog):
    vae = vaes.wan21()
    z = latent(16, 3, height, width)
    axis = 3 if height > width else 4
    # Cut in two, 24 latent pixels become 16 and 16 that share the middle 8.
    parts = [stock_decode(vae, z.narrow(axis, start, 16)) for start in (0, 8)]
    seen = vaes.out_of_memory(vae, at, above=16)
    images = decode_images(vae, z)
    assert "trying again in 2 strips" in caplog.text
    assert seen == [24] * at + [16] * 4
    alone, seam = 8 * 8, OVERLAP * 8
    assert torch.equal(images.narrow(axis - 2, 0, alone), parts[0].narrow(axis - 2, 0, alone))
    assert torch.equal(images.narrow(axis - 2, alone + seam, alone), parts[1].narrow(axis - 2, seam, alone))
    weight = ((torch.arange(seam) + 0.5) / seam).view(-1, *[1] * (5 - axis))
    first, second = parts[0].narrow(axis - 2, alone, seam), parts[1].narrow(axis - 2, 0, seam)
    mixed = images.narrow(axis - 2, alone, seam)
    torch.testing.assert_close(mixed, first * (1 - weight) + second * weight, rtol=0, atol=1e-6)


def test_when_nothing_fits_the_error_is_comfyuis():
    vae = vaes.wan21()
    seen = vaes.out_of_memory(vae, 1, above=0)
    with pytest.raises(torch.OutOfMemoryError):
        decode_images(vae, latent(16, 1, 2, 24))
    assert seen == [24, 16]


def test_another_error_is_not_taken_for_it():
    vae = vaes.wan21()
    vae.first_stage_model.decoder.conv1.register_forward_pre_hook(lambda module, args: {}["missing"])
    with pytest.raises(KeyError):
        decode_images(vae, latent(16, 1, 2, 24))


def test_what_does_not_fit_is_cut_before_trying(wan21):
    z = torch.empty(2, 16, 21, 60, 104, device="meta")
    whole = chunk_memory(wan21, z)
    assert [way.strips for way in module._choices(wan21, z, whole)][:2] == [1, 2]
    first, *_, last = module._choices(wan21, z, whole / 3)
    assert first == (1, 4) and chunk_memory(wan21, z, 4) <= whole / 3 < chunk_memory(wan21, z, 3)
    assert last == (1, 12)
    assert module._choices(wan21, z, 0) == [(1, 12)]


@pytest.mark.parametrize(
    "kind,length,size",
    [
        *(("2.1", *each) for each in ((1, (90, 160)), (2, (90, 160)), (7, (60, 104)), (7, (90, 160)))),
        *(("2.2", length, (44, 80)) for length in (1, 3)),
        *(("lighttaew2_1", *each) for each in ((1, (60, 104)), (3, (90, 160)))),
        ("lighttaew2_2", 3, (44, 80)),
    ],
)
def test_the_estimate_covers_what_the_decoder_holds_and_little_more(make, kind, length, size, monkeypatch):
    """The peak of the chunks of a decoder of real width, which is traced without computing it."""
    vae = make(kind)
    with torch.device("meta"):
        if kind.startswith("lighttae"):
            model = TAEHV(latent_channels=vae.latent_channels)
        elif kind == "2.2":
            model = wan22_module.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])
        else:
            model = wan21_module.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
        model = model.bfloat16().eval()
        z = torch.empty(1, vae.latent_channels, length, *size, dtype=torch.bfloat16)
    monkeypatch.setattr(vae, "first_stage_model", model)
    monkeypatch.setattr(vae, "vae_dtype", torch.bfloat16)
    if kind.startswith("2."):
        # The attention at an eighth of the size asks for the device's free memory, which meta does not have.
        model.decoder.middle[1].optimized_attention = lambda q, k, v: q
    with PeakBytes() as watch:
        for _ in chunk_decoder(vae).chunks(z):
            pass
    estimate = chunk_memory(vae, z)
    assert 1.05 * watch.peak < estimate < 1.6 * watch.peak
    if size == (90, 160) and length > 1:
        assert estimate < 0.6 * vae.memory_used_decode((1, 16, 21, *size), torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 16, 4, 4), (1, 4, 3, 4, 4), (1, 16, 0, 4, 4), (1, 48, 1, 4, 4)])
def test_another_models_latent_is_refused(wan21, shape):
    with pytest.raises(TurboError, match=r"this VAE decodes \[batch, 16, frames, height, width\]"):
        latent_of(wan21, {"samples": torch.zeros(shape)})
