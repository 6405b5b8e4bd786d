"""Training computes the same as ComfyUI and the pack, and can be stopped at any step."""

import pytest
import safetensors.torch
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import relative_error
from td_pack.tests.tiny import models, world
from td_pack.tests.tiny.nodes import toy_text
from td_pack.tests.tiny.training import whole_dit, whole_vae
from td_pack.tests.tiny.training.loop import Stage, train


def test_the_vae_on_whole_clips_equals_comfyui():
    from comfy.sd import VAE

    vae = models.load_vae()
    stock = VAE(sd=safetensors.torch.load_file(models.WEIGHTS / models.VAE), dtype=torch.float32).first_stage_model
    video = world.render(world.scene(2), 32, 17, origin=(48, 48)).permute(3, 0, 1, 2)[None] * 2 - 1
    with torch.no_grad():
        latent = whole_vae.encode(vae, video)
        # The order of sums differs; both are float32.
        assert relative_error(stock.encode(video), latent) < 1e-5
        assert relative_error(stock.decode(latent), whole_vae.decode(vae, latent)) < 1e-5


@pytest.mark.parametrize(
    "file, channels, blocks", [(models.T2V, 16, None), (models.T2V, 16, 2), (models.I2V_HIGH, 36, None)]
)
def test_the_network_for_training_equals_the_packs(file, channels, blocks):
    patcher = models.load(models.WEIGHTS / file, blocks, dtype="fp32")
    patcher.patch_model()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 9, 16, 16, generator=random)
    t = torch.tensor([852.0])
    text, _ = toy_text.encode(world.scene(1).prompt)
    weights = {k: v.float() for k, v in torch.load(models.WEIGHTS / file, weights_only=True).items()}
    with torch.no_grad():
        expected = patcher.model.diffusion_model(x, t, text)
        actual = whole_dit.velocity(weights, x, t, text, blocks)
    # Training computes in bfloat16: 6 layers of roundings of 2^-9.
    assert relative_error(actual, expected) < 2e-2


def test_a_stage_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(4, 4))
        optimizers = [torch.optim.AdamW([w], lr=0.1)]

        def loss(step):
            if step == stop:
                raise KeyboardInterrupt
            return (w - step).square().mean()

        return train(Stage("s", 6, warm_up=2), folder, {"w": w}, optimizers, loss, save_every=0)

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=3)
    assert torch.equal(run(tmp_path / "b")["w"], whole["w"])


def test_the_weights_are_upstreams_layout_and_small():
    sizes = [path.stat().st_size for path in models.WEIGHTS.iterdir()]
    assert sum(sizes) < 15e6
    for file, channels, layers, sla in (
        (models.T2V, 16, 6, True),
        (models.I2V_HIGH, 36, 4, False),
        (models.I2V_LOW, 36, 4, False),
    ):
        tensors = torch.load(models.WEIGHTS / file, weights_only=True)
        assert {k: tuple(v.shape) for k, v in tensors.items()} == checkpoints.shapes(128, 512, layers, channels, sla)
        assert {v.dtype for v in tensors.values()} == {torch.bfloat16}
