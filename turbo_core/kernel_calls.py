"""The operators that a pass through a Wan network or its VAE's decoder calls, so that their kernels can be compiled
before it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from ..kernels import Call, attention_call, tile_count
from .attention import SLA
from .checkpoint.layout import HEAD_DIM

# Tokens of 81 frames at 480p and at 720p: the selection of key blocks is compiled for their number, in powers of two.
# Other sizes compile that one kernel at their first step.
TOKENS = (32_760, 75_600)
TEXT = 512  # tokens of a prompt


class Packed4(NamedTuple):
    """Block sizes of 4-bit weights, and whether their scales are quantized too."""

    blocksize: int
    nested_blocksize: int
    nested: bool


class Network(NamedTuple):
    """What decides which kernels a network launches. `dtype`: of its activations. `activations`: how those of its int8
    linears are quantized, "group", "block", or "row" for weights by channel; empty without int8 weights. `attention`:
    the settings of its sparse attention. `turbo`: with our transformer blocks; `side_paths`: with LoRAs beside their
    weights."""

    width: int
    ffn_width: int
    heads: int
    dtype: torch.dtype
    activations: str = ""
    attention: frozenset[SLA] = frozenset()
    turbo: bool = True
    side_paths: bool = False
    four_bit: Packed4 | None = None


def network_calls(network: Network, device: torch.device) -> Iterator[Call]:
    """One call for each kernel, for a batch of one; tensors are on "meta"."""
    if network.four_bit is not None:
        yield _nf4(network, network.four_bit)
    if network.dtype not in (torch.float16, torch.bfloat16):
        return  # the other kernels compute in 16 bits
    if network.turbo:
        yield from _block(network)
    if network.turbo or network.attention:
        x = _new(network, 1, TOKENS[0], network.width)
        freqs = torch.empty(1, TOKENS[0], 1, HEAD_DIM // 2, 2, 2, device="meta")
        given = {"x": x, "weight": _new(network, network.width), "freqs": freqs, "heads": network.heads, "eps": 1e-6}
        yield Call("rms_norm_rope", given)
    for settings in network.attention:
        for tokens in TOKENS:
            q, k, v = (_new(network, 1, tokens, network.heads, HEAD_DIM) for _ in range(3))
            weight, bias = _new(network, HEAD_DIM, HEAD_DIM), _new(network, HEAD_DIM)
            projection = {"proj_weight": weight, "proj_bias": bias} if settings.linear else _NO_PROJECTION
            given = {"q": q, "k": k, "v": v, "topk": settings.topk} | projection
            yield attention_call(device, settings.pv, given)


_NO_PROJECTION = {"proj_weight": None, "proj_bias": None}


def _new(network: Network, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=network.dtype, device="meta")


def _block(network: Network) -> Iterator[Call]:
    """Norms and linears of a transformer block."""
    width, ffn_width, by = network.width, network.ffn_width, network.activations
    x = _new(network, 1, TOKENS[0], width)
    modulation = torch.empty(1, 1, 6, width, device="meta")
    shift, scale, gate = modulation.unbind(2)[:3]
    norm = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6}
    if not by or network.side_paths:
        yield Call("layer_norm_modulate", norm)
    if not by:
        return
    yield Call("layer_norm_modulate_quantize", norm | {"by": by})
    yield Call(f"quantize_{by}", {"x": x})
    yield Call("int8_matmul", _product(network, width, width) | {"out_dtype": network.dtype})
    yield Call("int8_matmul_gate_residual", _product(network, width, width) | {"residual": x, "gate": gate})
    yield Call(
        "int8_matmul_gelu_quantize", _product(network, ffn_width, width) | {"out_dtype": network.dtype, "by": by}
    )
    if by != "row":  # ComfyUI's linear multiplies the text by weights that have a scale for each channel
        text = {"x": _new(network, 1, TEXT, width), "activation": by}
        yield Call("int8_linear", _layer(network, width, width) | text)


def _product(network: Network, n: int, k: int) -> dict[str, torch.Tensor]:
    """Codes [1, tokens, k] and a layer [n, k]."""
    tokens = TOKENS[0]
    shape = {"group": (1, tile_count(k), tokens), "block": (1, tile_count(tokens), tile_count(k)), "row": (1, tokens)}
    codes = torch.empty(1, tokens, k, dtype=torch.int8, device="meta")
    scales = torch.empty(shape[network.activations], device="meta")
    return {"codes": codes, "scales": scales} | _layer(network, n, k)


def _layer(network: Network, n: int, k: int) -> dict[str, torch.Tensor]:
    scale = (n,) if network.activations == "row" else (tile_count(n), tile_count(k))
    weight = torch.empty(n, k, dtype=torch.int8, device="meta")
    return {"weight": weight, "weight_scale": torch.empty(scale, device="meta"), "bias": _new(network, n)}


def _nf4(network: Network, packed: Packed4) -> Call:
    rows = columns = network.width
    blocks = -(-rows * columns // packed.blocksize)
    nested: dict[str, torch.Tensor | None] = {"nested_absmax": None, "nested_quant_map": None}
    if packed.nested:
        nested = {
            "nested_absmax": torch.empty(-(-blocks // packed.nested_blocksize), device="meta"),
            "nested_quant_map": torch.empty(256, device="meta"),
        }
    return Call(
        "nf4_dequantize",
        {
            "codes": torch.empty(-(-rows * columns // 2), dtype=torch.uint8, device="meta"),
            "absmax": torch.empty(blocks, dtype=torch.uint8 if packed.nested else torch.float32, device="meta"),
            "quant_map": torch.empty(16, device="meta"),
            **nested,
            "nested_offset": 0.5,
            "blocksize": packed.blocksize,
            "nested_blocksize": packed.nested_blocksize,
            "rows": rows,
            "columns": columns,
            "dtype": network.dtype,
        },
    )


def decoder_calls(widths: Iterable[int], dtype: torch.dtype) -> Iterator[Call]:
    """What a Wan VAE's decoder calls whose norms have these widths, channels last: for the first frame and for those
    that follow. Tensors are on "meta"."""
    for width in widths:
        x = torch.empty(1, 2, 60, 104, width, dtype=dtype, device="meta").movedim(-1, 1)
        weight = torch.empty(width, dtype=dtype, device="meta")
        for past in (x, None):
            yield Call("rms_norm_silu_pad", {"x": x, "weight": weight, "past": past})
