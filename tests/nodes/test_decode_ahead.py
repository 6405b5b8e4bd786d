"""When the decoder's kernels begin to be compiled."""

from types import SimpleNamespace

import pytest
import torch
from td_pack.nodes.decode import TurboDiffusionVAEDecode
from td_pack.tests.support import vaes
from td_pack.turbo_core.host import kernels_ahead


@pytest.mark.parametrize(
    "make, compiled",
    [(lambda: vaes.wan21(torch.bfloat16), True), (vaes.wan21, False), (vaes.taehv, False)],
    ids=["16 bits", "float32", "TAEHV"],
)
def test_a_decoder_s_kernels_are_compiled_before_there_is_a_latent(make, compiled, monkeypatch):
    vae, seen = make(), []
    monkeypatch.setattr(kernels_ahead, "compile_ahead", lambda device, calls: seen.extend(calls))
    monkeypatch.setattr(TurboDiffusionVAEDecode, "hidden", SimpleNamespace(prompt={}, unique_id="1"))
    assert TurboDiffusionVAEDecode.check_lazy_status(vae, samples={"samples": None}) == [] == seen
    assert TurboDiffusionVAEDecode.check_lazy_status(vae) == ["samples"]
    norms = vae.first_stage_model.decoder.modules()
    widths = {norm.gamma.numel() for norm in norms if hasattr(norm, "gamma")} if compiled else set()
    assert {call.arguments["x"].shape[1] for call in seen} == widths
    assert len(seen) == 2 * len(widths)  # with frames before and without
