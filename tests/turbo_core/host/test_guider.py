"""Two experts in one run: which runs when, with which patches, and what happens to their memory."""

import gc
import threading
import time
import weakref

import comfy.model_management
import comfy.samplers
import psutil
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.guider import ExpertGuider
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import needs_low_expert, run, run_sigmas
from td_pack.turbo_core.host.sampler import make_sampler

SHAPE = (1, 16, 2, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def experts(folder):
    return [
        load_model(
            str(checkpoints.write_pth(folder / f"{name}.pth", checkpoints.upstream_state_dict(seed, in_channels=36)))
        )
        for name, seed in (("high", 21), ("low", 22))
    ]


@pytest.fixture(scope="module")
def t2v(folder):
    return load_model(str(checkpoints.write_pth(folder / "t2v.pth", checkpoints.upstream_state_dict(11))))


def text(width: int = 4096, batch: int = 1) -> list:
    return [[checkpoints.draw(1, "text", (batch, 8, width)), {}]]


def image_text(key: str = "text") -> list:
    mask = torch.ones(1, 1, *SHAPE[2:])
    mask[:, :, 0] = 0
    options = {"concat_latent_image": checkpoints.draw(1, "image", SHAPE), "concat_mask": mask}
    return [[checkpoints.draw(1, key, (1, 8, 4096)), options]]


def latent(batch: int = 1, **more) -> dict:
    return {"samples": torch.zeros(batch, *SHAPE[1:]), **more}


def traced(model, name: str, calls: list):
    """A clone whose forward passes are recorded as (name, timestep)."""
    clone = model.clone()

    def record(executor, x, t, *args, **kwargs):
        calls.append((name, round(float(t[0]))))
        return executor(x, t, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "trace", record)
    return clone


def sample(high, positive, low=None, steps=4, boundary=0.9, mode="sde", seed=3, **more):
    return run(high, positive, more.pop("latent", latent()), seed, steps, 0, boundary, mode, "cpu", low, **more)[
        "samples"
    ]


@pytest.mark.parametrize(
    "steps,boundary,expected",
    [
        (4, 0.9, "high high low low"),
        (3, 0.9, "high high low"),
        (2, 0.9, "high high"),
        (1, 0.9, "high"),
        (4, 1.0, "low low low low"),
        (4, 0.001, "high high high high"),
        (8, 0.9, "high high high low low low low low"),
    ],
)
def test_each_step_runs_the_expert_of_its_noise_level(experts, steps, boundary, expected):
    calls = []
    high, low = (traced(model, name, calls) for model, name in zip(experts, ("high", "low"), strict=True))
    sample(high, image_text(), low, steps, boundary)
    assert " ".join(name for name, _ in calls) == expected
    assert needs_low_expert(high, steps, 0, boundary) == ("low" in expected)
    if steps == 4:
        assert [timestep for _, timestep in calls] == [996, 932, 852, 608]


def waiting(model, done):
    """A clone whose every forward pass first waits until `done()`, and fails if that does not come."""
    clone = model.clone()

    def wait(executor, *args, **kwargs):
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, "what the step waited for did not happen"
            time.sleep(0.001)
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "wait", wait)
    return clone


@pytest.mark.parametrize("boundary,high_steps", [(0.9, 2), (0.95, 1)])
def test_the_low_expert_is_read_while_the_last_high_step_runs(experts, boundary, high_steps):
    high, low = experts

    def read_or_early():
        record = high.model.last_run
        return len(record.passes) < high_steps or (record.read_ahead is not None and record.read_ahead.ended)

    sample(waiting(high, read_or_early), image_text(), low, boundary=boundary)
    record = high.model.last_run
    assert record is low.model.last_run
    assert [step.expert for step in record.passes] == ["high"] * high_steps + ["low"] * (4 - high_steps)
    last_high = record.passes[high_steps - 1]
    assert last_high.began < record.read_ahead.began < last_high.ended
    assert record.read_ahead.read == record.read_ahead.wanted == low.model.source.stat().st_size
    assert list(record.seconds) == ["load", "high", "switch", "low"]
    assert {name: calls["network"] for name, calls in record.calls.items()} == {
        "high": high_steps,
        "low": 4 - high_steps,
    }


@pytest.mark.parametrize("case", ["no low step", "low steps only", "one file", "one model"])
def test_nothing_is_read_ahead_that_the_run_does_not_come_to(experts, t2v, case):
    if case == "no low step":
        sample(experts[0], image_text(), experts[1], steps=2)
    elif case == "low steps only":
        sample(experts[0], image_text(), experts[1], boundary=1.0)
    elif case == "one file":
        sample(t2v, text(), t2v.clone())
    else:
        sample(t2v, text())
    model = t2v if case.startswith("one") else experts[0]
    assert model.model.last_run.passes and model.model.last_run.read_ahead is None


@pytest.mark.parametrize("steps,loaded", [(2, False), (4, True)])
def test_an_expert_without_a_step_never_reaches_the_device(experts, steps, loaded):
    comfy.model_management.unload_all_models()
    sample(experts[0], image_text(), experts[1], steps)
    assert any(m.model is experts[1] for m in comfy.model_management.current_loaded_models) == loaded


def test_only_the_low_half_leaves_the_high_expert_alone(experts):
    comfy.model_management.unload_all_models()
    guider = ExpertGuider(*experts)
    guider.set_conds(image_text())
    low_half = run_sigmas(experts[0], 4, 0)[2:]
    SamplerCustomAdvanced.execute(Noise_RandomNoise(3), guider, make_sampler("ode", "cpu"), low_half, latent())
    assert [m.model for m in comfy.model_management.current_loaded_models] == [experts[1]]


def test_one_run_equals_two_samplers_over_the_halves(experts):
    whole = sample(experts[0], image_text(), experts[1], mode="ode")
    sigmas = run_sigmas(experts[0], 4, 0)
    state = latent()
    for model, part, noise in ((experts[0], sigmas[:3], Noise_RandomNoise(3)), (experts[1], sigmas[2:], None)):
        guider = ExpertGuider(model)
        guider.set_conds(image_text())
        if noise is None:
            from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

            noise = Noise_EmptyNoise()
        state = SamplerCustomAdvanced.execute(noise, guider, make_sampler("ode", "cpu"), part, state)[0]
    # Between the halves the latent is divided and multiplied by 1 - sigma in float32.
    assert relative_error(state["samples"], whole) <= 1e-5


def test_a_sampler_that_goes_back_above_the_boundary_switches_back(experts):
    calls = []
    high, low = (traced(model, name, calls) for model, name in zip(experts, ("high", "low"), strict=True))
    guider = ExpertGuider(high, low)
    guider.set_conds(image_text())

    def back_and_forth(model, x, sigmas, extra_args=None, callback=None, disable=None):
        results = [model(x, x.new_tensor([sigma]), **extra_args) for sigma in (0.95, 0.5, 0.95)]
        assert torch.equal(results[0], results[2])
        return x

    SamplerCustomAdvanced.execute(
        Noise_RandomNoise(3), guider, comfy.samplers.KSAMPLER(back_and_forth), torch.tensor([0.95, 0.0]), latent()
    )
    assert [name for name, _ in calls] == ["high", "low", "high"]


def test_experts_that_are_clones_of_one_file_keep_their_own_patches(t2v):
    """High and low may be one checkpoint with two LoRAs: each step must see its own weights."""
    key = "diffusion_model.blocks.0.ffn.2.weight"
    delta = checkpoints.draw(1, "delta", (256, 512))
    patched = t2v.clone()
    patched.add_patches({key: ("diff", (delta,))}, 0.5)
    before = t2v.model.diffusion_model.blocks[0].ffn[2].weight.clone()
    both = sample(t2v, text(), patched)
    only_plain, only_patched = sample(t2v, text()), sample(patched, text())
    assert not torch.equal(both, only_plain) and not torch.equal(both, only_patched)
    assert torch.equal(sample(patched, text(), t2v, boundary=1.0), only_plain)
    comfy.model_management.unload_all_models()
    assert torch.equal(t2v.model.diffusion_model.blocks[0].ffn[2].weight, before)


def test_each_expert_uses_its_own_model_options(experts):
    """The low expert's wrappers fire for its steps only, and so do the high expert's."""
    calls = []
    sample(experts[0], image_text(), traced(experts[1], "low", calls))
    assert [name for name, _ in calls] == ["low", "low"]


@pytest.mark.parametrize("mode", ["sde", "ode"])
def test_a_batch_equals_single_runs(t2v, mode):
    noise = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(9))
    single = []
    sigmas = run_sigmas(t2v, 2, 0)

    class Given:
        seed = 0

        def __init__(self, value):
            self.value = value

        def generate_noise(self, latent):
            return self.value

    def result(value):
        guider = ExpertGuider(t2v)
        guider.set_conds(text())
        return SamplerCustomAdvanced.execute(
            Given(value), guider, make_sampler(mode, "cpu"), sigmas, latent(len(value))
        )[0]["samples"]

    batch = result(noise)
    assert batch.shape[0] == 2
    if mode == "ode":  # re-noise is drawn in the batch's shape, so only the deterministic mode can be compared
        single = torch.cat([result(noise[i : i + 1]) for i in range(2)])
        # Matrix products of another size may be summed in another order.
        assert relative_error(batch, single) <= 1e-5
    else:
        assert not torch.equal(batch[0], batch[1])


def test_masked_out_parts_of_the_latent_are_kept(t2v):
    given = checkpoints.draw(2, "latent", SHAPE)
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :4] = 1
    out = sample(t2v, text(), latent={"samples": given, "noise_mask": mask})
    # Through the latent format's mean and standard deviation and back, in float32.
    assert torch.allclose(out[..., 4:], given[..., 4:], atol=1e-5)
    assert (out[..., :4] - given[..., :4]).abs().mean() > 0.1


def test_noise_on_the_device_is_the_same_stream(t2v):
    """Where the compute device is the CPU, gpu and cpu are one."""
    if t2v.load_device.type != "cpu":
        pytest.skip("this machine computes on a GPU, whose random numbers differ")
    cpu = run(t2v, text(), latent(), 5, 4, 0, 0.9, "sde", "cpu")["samples"]
    gpu = run(t2v, text(), latent(), 5, 4, 0, 0.9, "sde", "gpu")["samples"]
    assert torch.equal(cpu, gpu)


def test_batch_index_does_not_repeat_the_initial_noise(t2v):
    """RandomNoise with batch_index [1] starts from the stream's second draw, which must not come back as re-noise."""
    plain = sample(t2v, text(), latent=latent())
    indexed = sample(t2v, text(), latent=latent(batch_index=[1]))
    assert torch.isfinite(indexed).all() and not torch.equal(plain, indexed)
    assert torch.equal(plain, sample(t2v, text(), latent=latent(batch_index=[0])))


def test_guidance_uses_each_expert_s_cfg(experts):
    negative = image_text("other")
    one = sample(experts[0], image_text(), experts[1])
    calls = []
    high, low = (traced(model, name, calls) for model, name in zip(experts, ("high", "low"), strict=True))
    guided = sample(high, image_text(), low, negative=negative, cfg_high=1.0, cfg_low=2.0)
    assert not torch.equal(one, guided)
    # cfg 1 skips the negative pass; cfg 2 runs it, in the same call or in a second one.
    assert [name for name, _ in calls][:2] == ["high", "high"] and set(name for name, _ in calls[2:]) == {"low"}
    assert torch.equal(one, sample(experts[0], image_text(), experts[1], negative=negative))


class Stop(BaseException):
    """As ComfyUI's interrupt: no Exception, so that only `finally` sees it."""


@pytest.mark.parametrize("expert", ["high", "low"])
def test_an_interrupt_leaves_nothing_behind(experts, expert):
    calls = []
    models = dict(zip(("high", "low"), experts, strict=True))

    def stop(executor, *args, **kwargs):
        raise Stop

    stopped = models[expert].clone()
    stopped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)
    guider = ExpertGuider(**{**models, expert: stopped})
    guider.set_conds(image_text())
    with pytest.raises(Stop):
        SamplerCustomAdvanced.execute(
            Noise_RandomNoise(3), guider, make_sampler("sde", "cpu"), run_sigmas(experts[0], 4, 0), latent()
        )
    assert guider._other is None and guider._run is None
    assert all(model.model.current_patcher is None for model in experts)
    high, low = (traced(model, name, calls) for model, name in zip(experts, ("high", "low"), strict=True))
    sample(high, image_text(), low)
    assert len(calls) == 4


def test_an_interrupt_while_the_low_expert_is_read_ends_the_reading(experts, tmp_path):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 36)  # sparse: takes no disk, and many seconds to read
    high, low = (model.clone() for model in experts)
    source, low.model.source = low.model.source, huge

    def stop(executor, *args, **kwargs):
        record = high.model.last_run
        while record.read_ahead is not None and not record.read_ahead.read:
            time.sleep(0.001)
        if record.read_ahead is not None:
            raise Stop
        return executor(*args, **kwargs)

    high.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)
    threads, files = threading.enumerate(), psutil.Process().open_files()
    try:
        with pytest.raises(Stop):
            sample(high, image_text(), low)
    finally:
        low.model.source = source
    reading = high.model.last_run.read_ahead
    assert reading.cut == "It was stopped." and 0 < reading.read < reading.wanted
    assert threading.enumerate() == threads and psutil.Process().open_files() == files


def test_comfyui_frees_both_experts(folder):
    models = [load_model(str(folder / f"{name}.pth")) for name in ("high", "low")]
    networks = [weakref.ref(model.model) for model in models]
    sample(models[0], image_text(), models[1])
    models.clear()
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    comfy.model_management.free_memory(1e30, comfy.model_management.get_torch_device())
    gc.collect()
    assert [network() for network in networks] == [None, None]


@pytest.mark.parametrize(
    "problem,message",
    [
        ("text width", "The text conditioning is 768 wide and this model takes 4096"),
        ("no text", "The conditioning is empty"),
        ("no image", "This is an image-to-video model and the conditioning holds no image"),
        ("tasks", "The two experts do not belong together, their task differs"),
        ("sizes", "The two experts do not belong together, their number of layers differs"),
        ("boundary", "boundary is 1.5"),
        ("cfg", "needs a negative conditioning"),
        ("other loader", "load it with TurboDiffusionLoader"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_runs(experts, t2v, folder, problem, message):
    def build():
        if problem == "tasks":
            return ExpertGuider(experts[0], t2v)
        if problem == "sizes":
            deeper = checkpoints.write_pth(folder / "deep.pth", checkpoints.upstream_state_dict(1, layers=3))
            return ExpertGuider(t2v, load_model(str(deeper)))
        if problem == "boundary":
            return ExpertGuider(t2v, boundary=1.5)
        if problem == "other loader":
            import comfy.sd

            state_dict = checkpoints.upstream_state_dict(1)
            conv = state_dict["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2))
            stock = comfy.sd.load_diffusion_model_state_dict(state_dict | {"patch_embedding.weight": conv})
            return ExpertGuider(stock)
        guider = ExpertGuider(experts[0] if problem == "no image" else t2v)
        guider.set_conds({"text width": text(768), "no text": []}.get(problem, text()))
        guider.set_cfg(3.0, 1.0)

    with pytest.raises(TurboError, match=message):
        build()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 2, 8, 8), (1, 48, 2, 8, 8)])
def test_a_latent_that_is_not_wan_s_is_refused(t2v, shape):
    with pytest.raises(TurboError, match="Wan needs a 16-channel video latent"):
        sample(t2v, text(), latent={"samples": torch.zeros(shape)})


def test_stock_samplers_give_the_same_messages(t2v, experts):
    """The model itself checks, so KSampler users read them too."""
    import comfy.sample

    def stock(model, conditioning):
        comfy.sample.sample(
            model, torch.zeros(SHAPE), 1, 1.0, "euler", "simple", conditioning, conditioning, torch.zeros(SHAPE)
        )

    with pytest.raises(TurboError, match="768 wide"):
        stock(t2v, text(768))
    with pytest.raises(TurboError, match="holds no image"):
        stock(experts[0], text())
