"""LingBot-World's network against upstream's outputs, and what it does with batches, repeats, chunks and wrong
cameras."""

import dataclasses

import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.lingbot import camera_of
from td_pack.tests.support.models import loaded, relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host import camera_model
from td_pack.turbo_core.host.camera_model import CONDCamera, without_repeats
from td_pack.turbo_core.host.conditioning import CAMERA_KEY, TEXT_KEY, check_conditioning


def load(folder, seed: int = 61, control: str = "cam", **size):
    return loaded(folder / f"{control}-{seed}.safetensors", lingbot.state_dict(seed, control, **size))


@pytest.fixture(scope="module")
def cam(tmp_path_factory):
    return load(tmp_path_factory.mktemp("lingbot"))


def velocity(patcher, latent, timestep, context, camera=None, **options) -> torch.Tensor:
    """What the network says; `latent` [B, 36, ...] is what it is fed."""
    extra = {}
    if camera is not None:
        frames = CONDCamera(camera).concat([])
        extra = {"camera": frames.frames, "camera_repeats": frames.repeats}
    network = patcher.model.diffusion_model
    with torch.inference_mode():
        return network(latent, timestep, context=context, transformer_options=options, **extra)


def golden_inputs(tensors) -> tuple[torch.Tensor, ...]:
    mask = torch.zeros(1, 4, *tensors["x"].shape[2:])
    mask[:, :, 0] = 1
    context = torch.zeros(1, 512, 4096)
    context[:, :32] = tensors["context"].float()
    return torch.cat([tensors["x"], mask, tensors["image_latent"]], dim=1), tensors["timestep"], context


@pytest.mark.parametrize("control", ["cam", "act"])
def test_upstream_s_velocity_with_and_without_a_camera(tmp_path, control):
    case, tensors = checkpoints.golden_case(f"lingbot_{control}")
    model = load(tmp_path, case["seed"], control, dim=case["dim"], ffn_dim=case["ffn"], layers=case["layers"])
    inputs = golden_inputs(tensors)
    with_camera = velocity(model, *inputs, tensors["camera_embedding"])
    assert relative_error(with_camera, tensors["velocity"]) <= 1e-4
    assert relative_error(velocity(model, *inputs), tensors["velocity_no_camera"]) <= 1e-4
    assert relative_error(with_camera, tensors["velocity_no_camera"]) > 0.1


def random_inputs(batch: int = 1, frames: int = 3) -> tuple[torch.Tensor, ...]:
    return (
        checkpoints.draw(1, "latent", (batch, 36, frames, 8, 12)),
        torch.full((batch,), 900.0),
        checkpoints.draw(1, "text", (batch, 16, 4096)),
    )


@pytest.mark.parametrize("tokens", [1, 2 * 24, 3 * 24])
def test_chunks_of_frames_change_nothing(cam, monkeypatch, tokens):
    inputs, camera = random_inputs(frames=5), camera_of("orbit_left", 17)
    whole = velocity(cam, *inputs, camera)
    calls = []
    hook = cam.model.diffusion_model.blocks[0].cam_scale_layer.register_forward_hook(
        lambda _, __, out: calls.append(out.shape[1])
    )
    monkeypatch.setattr(camera_model, "CHUNK_TOKENS", tokens)
    chunked = velocity(cam, *inputs, camera)
    hook.remove()
    assert max(calls) == max(1, tokens // 24) and sum(calls) == len(without_repeats(camera).repeats) == 4
    assert relative_error(chunked, whole) <= 1e-6


def test_steady_frames_are_computed_once_and_give_the_same(cam):
    inputs, camera = random_inputs(frames=5), camera_of("forward", 17, ease="linear")
    frames = without_repeats(camera)
    assert frames.repeats == (1, 4)
    network = cam.model.diffusion_model
    with torch.inference_mode():
        each = network(inputs[0], inputs[1], context=inputs[2], camera=camera, camera_repeats=(1,) * 5)
    assert relative_error(velocity(cam, *inputs, camera), each) <= 1e-6


def test_a_batch_shares_one_camera(cam):
    camera = camera_of("orbit_left")
    one = velocity(cam, *random_inputs(), camera)
    shapes = []
    layer = cam.model.diffusion_model.blocks[1].cam_shift_layer
    hook = layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    both = velocity(cam, *(torch.cat([t, t]) for t in random_inputs()), camera)
    hook.remove()
    assert shapes == [(1, len(without_repeats(camera).repeats), 24, 256)]  # once for both
    assert relative_error(both, torch.cat([one, one])) <= 1e-5


def test_prompts_share_a_camera_and_different_cameras_stay_apart():
    camera, other = camera_of("orbit_left"), camera_of("pan_left")
    positive, negative = (CONDCamera(camera).process_cond(2) for _ in range(2))
    assert positive.can_concat(negative)
    frames = positive.concat([negative])
    assert frames.repeats == (1, 2) and torch.equal(frames.frames, camera[:, :, :2])
    assert not positive.can_concat(CONDCamera(other))
    assert not positive.can_concat(CONDCamera(camera_of("orbit_left", 13)))


def test_a_batch_of_cameras_gives_each_video_its_own(cam):
    cameras = [camera_of("orbit_left"), camera_of("pan_left")]
    inputs = random_inputs(batch=2)
    cond = CONDCamera(torch.cat(cameras)).process_cond(2)
    both = velocity(cam, *inputs, cond.cond)
    for i, camera in enumerate(cameras):
        assert relative_error(both[i : i + 1], velocity(cam, *(t[i : i + 1] for t in inputs), camera)) <= 1e-5


def test_a_regional_prompt_gets_its_part_of_the_camera():
    camera = camera_of("orbit_left")
    part = CONDCamera(camera).process_cond(1, area=(2, 4, 6, 1, 3, 5)).cond
    assert torch.equal(part, camera[:, :, 1:3, 3:7, 5:11])


def test_a_replaced_block_still_gets_the_camera(cam):
    inputs, camera = random_inputs(), camera_of("orbit_left")
    seen = []

    def replace(args, extra):
        seen.append(args["img"].shape)
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 1): replace}}}
    assert torch.equal(velocity(cam, *inputs, camera, **options), velocity(cam, *inputs, camera))
    assert len(seen) == 1


def test_compile_follows_the_camera(tmp_path):
    """Eager backend: what is under test are the guards and breaks, not the code generator."""
    inputs = random_inputs()
    network = load(tmp_path, layers=1).model.diffusion_model
    compiled = torch.compile(network, backend="eager")
    for preset, ease in (("pan_left", "linear"), ("static", "linear")):
        frames = without_repeats(camera_of(preset, ease=ease))
        more = {"context": inputs[2], "camera": frames.frames, "camera_repeats": frames.repeats}
        with torch.inference_mode():
            assert relative_error(compiled(inputs[0], inputs[1], **more), network(inputs[0], inputs[1], **more)) <= 1e-6


WRONG = [
    ("", (1, 384, 3, 8, 12), "this model takes none"),
    ("cam", (1, 448, 3, 8, 12), "is for act models and this one is cam: set control to cam"),
    ("act", (1, 384, 3, 8, 12), "is for cam models and this one is act"),
    ("cam", (1, 24, 9, 64, 96), "ComfyUI's own WanCameraEmbedding is for Wan Fun Camera"),
    ("cam", (384, 3, 8, 12), "LingBot-World does not take"),
    ("cam", (1, 384, 5, 8, 12), "96x64 with 17 frames and the video 96x64 with 9"),
    ("cam", (1, 384, 3, 12, 8), "64x96 with 9 frames and the video 96x64 with 9"),
]


@pytest.mark.parametrize("control,shape,message", WRONG)
def test_a_camera_that_does_not_fit_is_refused(cam, control, shape, message):
    spec = dataclasses.replace(cam.model.spec, camera=control, in_channels=16, variant="T2V")  # which takes no image
    condition = {TEXT_KEY: torch.zeros(1, 8, 4096), CAMERA_KEY: torch.zeros(shape)}
    with pytest.raises(TurboError, match=message):
        check_conditioning(spec, condition, torch.zeros(1, 16, 3, 8, 12))
