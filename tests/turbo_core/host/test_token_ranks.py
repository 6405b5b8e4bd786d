"""A network call divided between gloo ranks against the same call in one process."""

import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import relative_error
from td_pack.tests.support.ranks import on_ranks
from td_pack.turbo_core.camera.embed import embed
from td_pack.turbo_core.camera.presets import path_from_preset
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.camera_model import CameraTokens, without_repeats
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.token_ranks import TokenRanks
from td_pack.turbo_core.parallel.shares import exchanged_bytes, token_slices

LAYERS = 2


def t2v(heads, **options):
    return checkpoints.upstream_state_dict(61, dim=128 * heads, sla=True, layers=LAYERS, **options)


# State dict by number of heads, its input channels, and the attention mode and activations it runs with.
CASES = {
    "dense": (t2v, 16, "dense", "fine"),
    "sla": (t2v, 16, "sla", "fine"),
    "sagesla": (t2v, 16, "sagesla", "fine"),
    "int8": (lambda heads: t2v(heads, int8=True), 16, "sla", "fine"),
    "int8 upstream": (lambda heads: t2v(heads, int8=True), 16, "sla", "upstream"),
    "lora": (t2v, 16, "sla", "fine"),
    "i2v": (lambda heads: t2v(heads, in_channels=36), 36, "sla", "fine"),
    "stock": (lambda heads: checkpoints.stock(62, dim=128 * heads), 16, "dense", "fine"),
    "camera": (lambda heads: lingbot.state_dict(63, "cam", dim=128 * heads), 36, "dense", "fine"),
}

IN_FLOAT = CASES.keys() - {"sagesla", "int8", "int8 upstream"}


@pytest.fixture
def models(tmp_path):
    """Loads a case a number of times, as each rank loads it, without ComfyUI's model management between threads."""

    def load(case, heads, count):
        state_dict, _, mode, activations = CASES[case]
        path = checkpoints.write_safetensors(tmp_path / "model.safetensors", state_dict(heads))
        loaded = []
        for _ in range(count):
            patcher = with_attention(load_model(str(path), activations=activations), mode, 0.3, "", False)
            if case == "lora":
                sizes = {f"blocks.{i}.ffn.0": (512, 128 * heads) for i in range(LAYERS)}
                sizes |= {"blocks.1.self_attn.k": (128 * heads,) * 2}
                patcher, _ = with_lora(patcher, "test.safetensors", checkpoints.lora(layers=sizes), 0.7)
            patcher.patch_model(device_to=torch.device("cpu"))
            loaded.append(patcher.model)
        return loaded

    return load


def inputs(case, batch=1, size=(3, 30, 34)):
    """x of 3 x 15 x 17 tokens: 6 tiles, the last one partial, frames that begin and end within tiles."""
    channels = CASES[case][1]
    given = {
        "x": checkpoints.draw(1, "latent", (batch, 16, *size)),
        "t": torch.full((batch,), 0.75),
        "c_crossattn": checkpoints.draw(1, "text", (batch, 16, 4096)),
    }
    if channels == 36:
        given["c_concat"] = checkpoints.draw(2, "image", (batch, 20, *size))
    if case == "camera":
        path = path_from_preset("orbit_left", 1.0, "smooth", 9)
        given["camera"] = without_repeats(embed(path, 8 * size[2], 8 * size[1], "cam"))
    return given


def divided(model, group, given):
    ranks = TokenRanks(group, len(model.diffusion_model.blocks))
    with torch.inference_mode():
        return model._apply_model(**given, transformer_options=ranks.options())


@pytest.mark.parametrize(
    "case, ranks",
    [
        *((case, 2) for case in CASES),
        *((case, ranks) for ranks in (3, 4) for case in ("sla", "int8 upstream", "lora", "i2v", "camera")),
        ("dense", 4),
    ],
)
def test_ranks_compute_what_one_process_does(case, ranks, models):
    own, *others = models(case, ranks, ranks + 1)
    for batch in (1, 2) if case == "sla" else (1,):
        given = inputs(case, batch)
        with torch.inference_mode():
            whole = own._apply_model(**given, transformer_options={})
        results = on_ranks(ranks, lambda group, given=given: divided(others[group.rank], group, given))
        # A matrix product over other rows may sum in another order, which flips a code that lies between two: each
        # 4e-6 here. Another block map or scale would show as 1e-3 and more.
        for result in results:
            assert relative_error(result, whole) <= (1e-6 if case in IN_FLOAT else 1e-4)


def test_ranks_in_bfloat16_differ_by_its_rounding(models, tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "model.safetensors", t2v(2))
    given, loaded = inputs("sla"), []
    for dtype in ("fp32", "bf16", "bf16", "bf16"):
        patcher = with_attention(load_model(str(path), dtype), "sla", 0.3, "", False)
        patcher.patch_model(device_to=torch.device("cpu"))
        loaded.append(patcher.model)
    with torch.inference_mode():
        exact, whole = (model._apply_model(**given, transformer_options={}) for model in loaded[:2])
    result = on_ranks(2, lambda group: divided(loaded[2 + group.rank], group, given))[0]
    print(relative_error(whole, exact), relative_error(result, exact), relative_error(result, whole))
    assert relative_error(result, exact) <= 1.05 * relative_error(whole, exact)


def test_a_layer_sends_what_the_formula_says(models):
    loaded = models("sla", 4, 2)
    given = inputs("sla")
    tokens, dim = 3 * 15 * 17, 512

    def run(group):
        divided(loaded[group.rank], group, given)
        own = token_slices(tokens, 2)[group.rank]
        gathered = (own.stop - own.start) * dim * 4
        assert group.sent == LAYERS * exchanged_bytes(tokens, group.rank, 2, dim, 4) + gathered

    on_ranks(2, run)


def test_an_exception_between_blocks_ends_every_rank(models):
    loaded = models("dense", 2, 2)

    def stop():
        raise TurboError("stopped")

    def run(group):
        between = stop if group.rank == 0 else lambda: None
        ranks = TokenRanks(group, LAYERS, between)
        with pytest.raises(TurboError, match="stopped" if group.rank == 0 else "could not reach each other"):
            loaded[group.rank]._apply_model(**inputs("dense"), transformer_options=ranks.options())

    on_ranks(2, run)


@pytest.mark.parametrize("cut", [(0, 80), (5, 17), (7, 9), (16, 48), (40, 80), (13, 80), (8, 16)])
def test_a_camera_is_cut_at_any_token(cut):
    """Frames of 8 tokens, of which some are repeated; tokens beyond the video have no camera."""
    tokens = torch.arange(4 * 8.0).view(1, 4, 8, 1)
    whole = CameraTokens(tokens, (1, 3, 1, 2))
    by_token = torch.cat([tokens[0, i, :, 0].repeat(count) for i, count in enumerate(whole.repeats)])
    start, stop = cut
    found = torch.full((stop - start,), -1.0)
    for part in whole.cut(start, stop):
        assert part.tokens.shape[1] == len(part.repeats)
        values = torch.cat([part.tokens[0, i, :, 0].repeat(count) for i, count in enumerate(part.repeats)])
        found[part.start : part.start + len(values)] = values
    expected = torch.full((stop - start,), -1.0)
    covered = by_token[start:stop]
    expected[: len(covered)] = covered
    assert torch.equal(found, expected)
