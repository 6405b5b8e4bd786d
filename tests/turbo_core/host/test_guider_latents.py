"""What a run makes of its latent: batches, masks, and where the noise comes from."""

from types import SimpleNamespace

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.experts import SHAPE, guided, latent, sample, text
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.host.run import run, run_sigmas


@pytest.mark.parametrize("mode", ["sde", "ode"])
def test_a_batch_equals_single_runs(t2v, mode):
    noise = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(9))

    def result(value):
        drawn = SimpleNamespace(seed=0, generate_noise=lambda latent: value)
        return guided(text(), run_sigmas(t2v, 2, 0), t2v, mode=mode, noise=drawn, given=latent(len(value)))

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
