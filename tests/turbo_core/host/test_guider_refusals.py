"""What does not belong in one run is refused by name, before anything runs."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.experts import SHAPE, image_text, sample, stock_sample, text
from td_pack.tests.support.models import stock_model
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.guider import ExpertGuider
from td_pack.turbo_core.host.load import load_model


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
            return ExpertGuider(stock_model(1))
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
    with pytest.raises(TurboError, match="768 wide"):
        stock_sample(t2v, text(768))
    with pytest.raises(TurboError, match="holds no image"):
        stock_sample(experts[0], text())


@pytest.mark.parametrize(
    "channels,frames,message", [(16, 3, "is for 9 frames and the latent has 5"), (32, 2, "another kind")]
)
def test_an_image_of_another_length_or_kind_is_refused(experts, channels, frames, message):
    image = torch.zeros(1, channels, frames, *SHAPE[3:])
    given = image_text(concat_latent_image=image)
    for sampled in (sample, stock_sample):
        with pytest.raises(TurboError, match=message):
            sampled(experts[0], given)
