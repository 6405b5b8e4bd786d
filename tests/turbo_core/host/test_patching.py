"""What other nodes do to a model - clone it, patch it, offload it, compile it - works and leaves no trace."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from td_pack.kernels import use_backend
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import compiled_by, relative_error, same, sample, weights
from td_pack.turbo_core.attention import SLA
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model


@pytest.fixture
def model(sparse_path):
    return load_model(sparse_path)


def test_settings_belong_to_their_clone(model):
    dense, sparse = with_attention(model, "dense", 0.1, "", False), with_attention(model, "sla", 0.7, "1", False)
    settings = [
        [m.get_model_object(f"diffusion_model.blocks.{i}.self_attn.sla") for i in (0, 1)]
        for m in (model, dense, sparse)
    ]
    assert settings == [[SLA(0.1, pv="auto"), SLA(0.1)], [None, None], [SLA(0.7, pv=""), None]]
    outputs = [sample(m) for m in (model, dense, sparse)]
    assert not any(torch.equal(outputs[a], outputs[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    # Alternating them in any order changes nothing, and the original is as before.
    for i in (2, 0, 1, 0, 2):
        assert torch.equal(sample((model, dense, sparse)[i]), outputs[i])


def test_all_blocks_selected_without_the_linear_branch_is_dense_attention(t2v):
    """On weights without proj_l, sparse attention over every block must be the dense one."""
    full = with_attention(t2v, "sla", 1.0, "", True)
    # Softmax over the same keys in another order of summation.
    assert relative_error(sample(full), sample(t2v)) <= 1e-5
    assert relative_error(sample(with_attention(t2v, "sla", 0.4, "", True)), sample(t2v)) > 1e-3
    assert torch.equal(sample(with_attention(t2v, "sla", 0.4, "0-1", True)), sample(t2v))


def test_sagesla_is_sparse_linear_attention_in_8_bits(model):
    sixteen, eight = (sample(with_attention(model, mode, 0.7, "", False)) for mode in ("sla", "sagesla"))
    # One 8-bit attention is within 2.5e-2 of the 16-bit one, and two layers dilute that; equal arithmetic agrees to
    # 1e-6.
    assert 1e-4 < relative_error(eight, sixteen) < 5e-2
    assert model.model.calls["sparse attention"] == 2


def test_auto_is_what_the_checkpoint_was_trained_for(model, t2v):
    automatic = with_attention(model, "auto", 0.1, "", False)
    assert automatic.get_model_object("diffusion_model.blocks.0.self_attn.sla") == SLA(0.1, pv="auto")
    assert torch.equal(sample(automatic), sample(model))
    assert torch.equal(sample(with_attention(t2v, "auto", 0.1, "", False)), sample(t2v))


@pytest.mark.parametrize(
    "given,message",
    [
        (("sla", 0.1, "", False), "no trained proj_l"),
        (("sagesla", 0.1, "", False), "no trained proj_l"),
        (("dense", 0.1, "0,9", False), "blocks are 0 to 1"),
        (("dense", 0.1, "first", False), "write block numbers"),
        (("auto", 1.5, "", False), "topk is 1.5"),
        (("auto", 0.1, "", False, -1), "dense_steps is -1"),
        (("linear", 0.1, "", False), "mode is 'linear': choose one of auto, sla"),
    ],
)
def test_what_cannot_be_done_is_said(t2v, given, message):
    with pytest.raises(TurboError, match=message):
        with_attention(t2v, *given)


@pytest.mark.parametrize("style", ["diffusion_model", "kohya"])
def test_a_lora_is_applied_to_every_layer_and_removed_to_the_bit(model, style):
    before, plain = weights(model), sample(model)
    patched, _ = comfy.sd.load_lora_for_models(model, None, checkpoints.lora(style), 0.8, 0)
    assert len(patched.patches) == 3
    changed = sample(patched)
    assert not torch.equal(changed, plain)
    assert not same(weights(model), before)  # ComfyUI patches the shared weights while the clone is loaded
    comfy.model_management.unload_all_models()
    assert same(weights(model), before)
    assert torch.equal(sample(model), plain)
    # The patched layer is w + 0.8 * up @ down.
    sample(patched)
    merged = before["blocks.1.ffn.2.weight"] + 0.8 * checkpoints.lora_change("blocks.1.ffn.2")
    assert torch.allclose(weights(patched)["blocks.1.ffn.2.weight"], merged, atol=1e-6)
    comfy.model_management.unload_all_models()


def calls(model) -> tuple[int, int, int]:
    return tuple(model.model.calls[name] for name in ("network", "sparse attention", "dense attention"))


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_counts_what_it_did(model, compiled):
    """Sparse calls are layers times steps, less what is dense."""
    steps = 3
    for given, sparse in (
        (("auto", 0.1, "", False), 2 * steps),
        (("sla", 0.5, "1", False), steps),
        (("sla", 0.5, "", False, 1), 2 * (steps - 1)),
        (("sla", 0.5, "0", False, 2), steps - 2),
        (("dense", 0.1, "", False), 0),
    ):
        clone = with_attention(model, *given)
        sample(compiled_by("eager", clone) if compiled else clone, steps)
        assert calls(clone) == (steps, sparse, 2 * steps - sparse)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("mode, compiled", [("sla", False), ("sla", True), ("sagesla", False)])
def test_where_sparse_attention_cannot_run_the_user_is_told_what_to_choose(model, mode, compiled):
    """Dense attention without the linear branch is another function: nobody gets it who did not choose it."""
    clone = with_attention(model, mode, 0.5, "", False)
    with use_backend("comfy_kitchen"), pytest.raises(TurboError) as error:  # which has no sparse attention
        sample(compiled_by("eager", clone) if compiled else clone, 1)
    assert str(error.value) == (
        "Sparse attention cannot run on cpu (triton: comfy_kitchen was demanded; batched: comfy_kitchen was demanded; "
        "torch: comfy_kitchen was demanded): "
        "set mode to dense in TurboDiffusion SLA."
    )
    assert calls(clone) == (0, 0, 0)


class TestDenseSteps:
    def test_are_the_first_of_a_run(self, model):
        sparse, dense = (sample(with_attention(model, mode, 0.7, "", False), 2) for mode in ("sla", "dense"))
        runs = [sample(with_attention(model, "sla", 0.7, "", False, steps), 2) for steps in (0, 1, 2, 9)]
        assert torch.equal(runs[0], sparse) and torch.equal(runs[2], dense) and torch.equal(runs[3], dense)
        assert not torch.equal(runs[1], sparse) and not torch.equal(runs[1], dense)

    def test_belong_to_their_clone_and_leave_no_trace(self, model):
        plain = sample(model, 2)
        some = with_attention(model, "sla", 0.1, "", False, 1)
        assert not torch.equal(sample(some, 2), plain)
        assert torch.equal(sample(model, 2), plain)
        assert calls(model) == (2, 4, 0)
        assert [block.self_attn.sla for block in model.model.diffusion_model.blocks] == [SLA(0.1)] * 2

    def test_count_over_both_experts(self, model, sparse_path):
        """Levels 0.988, 0.934, 0.853, 0.609: the boundary 0.9 is after the second step."""
        high, low = (with_attention(m, "sla", 0.7, "", False, 3) for m in (model, load_model(sparse_path)))
        sample(high, 4, low)
        assert calls(high) == (2, 0, 4)
        assert calls(low) == (2, 2, 2)

    def test_end_when_a_step_fails(self, model):
        """Interrupted or out of memory, the layers have their settings back."""
        patched = with_attention(model, "sla", 0.7, "", False, 1)
        patched.patch_model()
        network = patched.model.diffusion_model
        with pytest.raises(RuntimeError):
            patched.model.apply_model(
                torch.zeros(1, 3, 1, 2, 2),
                torch.ones(1),
                c_crossattn=torch.zeros(1, 8, 4096),
                transformer_options={"sample_sigmas": torch.tensor([1.0, 0.5, 0.0])},
            )
        assert [block.self_attn.sla for block in network.blocks] == [SLA(0.7, pv="")] * 2
        patched.unpatch_model()
