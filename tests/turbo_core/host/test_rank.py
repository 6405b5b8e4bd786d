"""A rank other than ComfyUI's process, in a thread: the model it makes by a recipe, and what it says of a step that
fails."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host import rank, recipes
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.token_ranks import TokenRanks
from td_pack.turbo_core.parallel.group import LOCAL, GroupError, connect, create_store

X = checkpoints.draw(1, "latent", (1, 16, 3, 20, 20))  # 300 tokens: three tiles, the last one partial


@pytest.fixture
def patcher(sparse_path):
    """With a LoRA beside the weights and one in them."""
    model, _ = with_lora(load_model(sparse_path), "a.safetensors", checkpoints.lora(), 0.7)
    change = checkpoints.lora(layers={"blocks.1.self_attn.v": (256, 256)})
    model, _ = comfy.sd.load_lora_for_models(model, None, change, 0.5, 0)
    model.patch_model(device_to=torch.device("cpu"))
    yield model
    model.unpatch_model()


def step(patcher, other, disturb=lambda group: None):
    """A network call of rank 0 with `other` as rank 1: the result of each, rank 0's as an error if it raised one."""
    model, store = patcher.model, create_store(LOCAL, 2)
    arguments = {"x": X, "timestep": torch.tensor([750.0]), "context": checkpoints.draw(1, "text", (1, 8, 4096))}
    with ThreadPoolExecutor(1) as thread:
        joined = thread.submit(other.join, "group", LOCAL, store.port, 1, 2, "gloo", LOCAL)
        group = connect(store, LOCAL, 0, 2, "gloo")
        joined.result()
        described = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in arguments.items()}
        attention = {name: tuple(layer.sla) for name, layer in model.attention_layers.items()}
        outcome = thread.submit(other.step, "group", "model", described, {}, attention)
        try:
            with torch.inference_mode():
                for tensor in arguments.values():
                    group.broadcast(tensor)
                disturb(group)
                options = TokenRanks(group, 2).options()
                result = model.diffusion_model(**arguments, transformer_options=options)
        except GroupError as error:
            result = error
        return result, outcome.result()


@pytest.fixture
def other(patcher):
    """Rank 1 with the model, made of what travels."""
    made = rank.Rank(1)
    made.load("model", pickle.loads(pickle.dumps(recipes.recipe_of(patcher))), tuple(X.shape), 2)
    return made


def test_a_model_by_its_recipe_computes_as_the_original(patcher, other):
    result, outcome = step(patcher, other)
    assert outcome is None
    with torch.inference_mode():
        text = checkpoints.draw(1, "text", (1, 8, 4096))
        whole = patcher.model.diffusion_model(X, torch.tensor([750.0]), text, transformer_options={})
    assert relative_error(result, whole) <= 1e-6
    assert other.device() == "cpu"


@pytest.mark.parametrize(
    "error, kind, sentence",
    [
        (torch.OutOfMemoryError("tried to allocate 1 GB"), "memory", "it is out of memory (tried to allocate 1 GB)"),
        (TurboError("This cannot be."), "error", "This cannot be."),
    ],
)
def test_a_step_that_fails_says_why_and_ends_the_others(error, kind, sentence, patcher, other):
    def fail(*_):
        raise error

    block = other._models["model"].model.diffusion_model.blocks[1]
    block.ffn.register_forward_hook(fail)
    result, outcome = step(patcher, other)
    assert outcome == (kind, sentence)
    assert isinstance(result, GroupError)
    block.ffn._forward_hooks.clear()
    assert step(patcher, other)[1] is None  # the next one forms a group of its own


def test_a_step_that_rank_0_leaves_ends(patcher, other):
    result, outcome = step(patcher, other, disturb=lambda group: group.abort())
    assert isinstance(result, GroupError) and outcome[0] == "group"


def test_what_is_forgotten_is_made_anew(patcher, other):
    other.unload(["model", "another"])
    other.forget(["model", "another"])
    with pytest.raises(KeyError):
        other.load("model", None, tuple(X.shape), 2)
    other.load("model", recipes.recipe_of(patcher), tuple(X.shape), 2)
    assert step(patcher, other)[1] is None


CHANGES = {
    "its change of diffusion_model.blocks.0": lambda clone: clone.add_object_patch("diffusion_model.blocks.0", None),
    "its patch of diffusion_model.blocks.0.ffn.0.weight": lambda clone: clone.add_patches(
        {("diffusion_model.blocks.0.ffn.0.weight", None, lambda weight: weight): (torch.zeros(1),)}
    ),
    "a model of another loader": lambda clone: setattr(clone, "cached_patcher_init", None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_cannot_travel_is_refused_by_name(what, patcher):
    clone = patcher.clone()
    CHANGES[what](clone)
    with pytest.raises(TurboError, match=what):
        recipes.recipe_of(clone)


@pytest.mark.parametrize(
    "options, what",
    [
        ({"wrappers": {WrappersMP.DIFFUSION_MODEL: {"TeaCache": [print]}}}, "its wrapper TeaCache"),
        ({"patches": {"attn1_patch": [print]}}, "its patches attn1_patch"),
        ({"patches_replace": {"dit": {("double_block", 3): print}}}, "its patches replace dit"),
        ({"optimized_attention_override": print}, "the attention it sets .print."),
    ],
)
def test_what_happens_within_a_call_is_refused_by_name(options, what):
    with pytest.raises(TurboError, match=what):
        recipes.check_call(options, "ours")
    recipes.check_call({"wrappers": {WrappersMP.DIFFUSION_MODEL: {"ours": [print]}}, "patches": {}}, "ours")
