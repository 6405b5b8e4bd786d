"""A step of the published models, kernel by kernel in the order in which `TurboBlock` runs them on int8 weights."""

from typing import NamedTuple

from .gpus import BLOCK, GPU
from .kernels import BANDWIDTH, NOTHING, Time, attention, matmul, sage_clocks, streamed

TEXT = 512  # tokens of a prompt
CROSS_SHARE = 0.6  # of the 16-bit rate that torch's attention reaches (an assumption)
QUERIES, KEYS = 128, 64  # of a block
# The form of the weights, as `convert` names it: the suffix of its products' cases.
FORMS = {"int8_block": "_group", "int8_rowwise": "_channel"}
STREAMED = ("norms, codes", "block map, linear branch")  # kinds of kernels that do little but move bytes


class Model(NamedTuple):
    width: int
    ffn: int
    layers: int
    tokens: int

    @property
    def hidden(self) -> int:
        """Bytes of one 16-bit activation [tokens, width]."""
        return self.tokens * self.width * 2

    def codes(self, width: int) -> int:
        """Bytes of int8 codes [tokens, width] and a float32 scale for each 128 of them."""
        return self.tokens * width + self.tokens * width // 128 * 4


MODELS = {
    "T2V 1.3B 480p": Model(1536, 8960, 30, 32760),
    "T2V 14B 720p": Model(5120, 13824, 40, 75600),
}


def selected_pairs(model: Model, topk: float) -> int:
    """Pairs of a query block and a key block in one layer, all heads."""
    key_blocks = -(-model.tokens // KEYS)
    return model.width // 128 * -(-model.tokens // QUERIES) * max(1, int(topk * key_blocks))


def sparse_branch(gpu: GPU, model: Model, topk: float, pv: str) -> Time:
    """Attention of one layer to the selected blocks, with the quantization of k and v that sage attention needs."""
    x = model.hidden
    time = attention(gpu, selected_pairs(model, topk), pv, 4 * x)
    return time if not pv else time + streamed(gpu, 2 * x + (1.5 if pv == "fp16" else 1.0) * x)


def self_attention(gpu: GPU, model: Model, topk: float, pv: str, form: str) -> dict[str, Time]:
    x, width, tokens = model.hidden, model.width, model.tokens
    weight, codes = width * width, model.codes(width)

    def linear(case: str, bytes_: float) -> Time:
        return matmul(gpu, tokens, width, width, case, bytes_ + weight)

    prepare = streamed(gpu, 2 * x, 2) + streamed(gpu, x, 3)  # keys and values; pooled queries, scores, selection
    return {
        # norm1; q's and k's norm; codes for o
        "norms, codes": streamed(gpu, x + codes) + streamed(gpu, 4 * x, 2) + streamed(gpu, x + codes),
        "int8 linears": 3 * [linear("int8_matmul" + FORMS[form], x + codes)]
        + [linear("int8_matmul_gate_residual" + FORMS[form], 2 * x + codes)],
        "attention": sparse_branch(gpu, model, topk, pv),
        "block map, linear branch": prepare,
    }


def cross_attention(gpu: GPU, model: Model, form: str) -> dict[str, Time]:
    x, width, tokens = model.hidden, model.width, model.tokens
    codes, weight = model.codes(width), width * width
    query = matmul(gpu, tokens, width, width, "int8_matmul" + FORMS[form], x + codes + weight)
    out = matmul(gpu, tokens, width, width, "int8_matmul_gate_residual" + FORMS[form], 2 * x + codes + weight)
    # by channel, ComfyUI's own are taken to be as fast
    text = matmul(gpu, TEXT, width, width, "int8_matmul" + FORMS[form], weight)
    products = gpu.seconds(gpu.clocks("bf16", 4.0 * tokens * TEXT * width)) / CROSS_SHARE
    return {
        # norm3; q's norm; codes for o; the text's codes
        "norms, codes": streamed(gpu, x + codes) + streamed(gpu, 2 * x, 2) + streamed(gpu, x + codes)
        + streamed(gpu, 0, 3),
        "int8 linears": [query, out, text, text],
        "cross-attention": Time(max(products, streamed(gpu, 2 * x).seconds), 2 * x, 1),
    }  # fmt: skip


def feed_forward(gpu: GPU, model: Model, form: str) -> dict[str, Time]:
    x, width, ffn, tokens = model.hidden, model.width, model.ffn, model.tokens
    codes, inner, weight = model.codes(width), model.codes(ffn), width * ffn
    down = matmul(gpu, tokens, width, ffn, "int8_matmul_gate_residual" + FORMS[form], 2 * x + inner + weight)
    streams = streamed(gpu, x + codes)
    if form == "int8_block":
        up = matmul(gpu, tokens, ffn, width, "int8_matmul_gelu_quantize_group", codes + inner + weight)
    else:  # a row is quantized when all of it is there
        wide = 2 * tokens * ffn
        up = matmul(gpu, tokens, ffn, width, "int8_matmul_gelu_channel", codes + wide + weight)
        streams += streamed(gpu, wide + inner)
    return {"norms, codes": streams, "int8 linears": [up, down]}


def step(gpu: GPU, model: Model, topk: float, pv: str, form: str = "int8_block") -> dict[str, Time]:
    """Seconds, bytes and launches of a step by kind of kernel. Embeddings and head, below 1 %, are left out."""
    found: dict[str, Time] = {}
    parts = (
        self_attention(gpu, model, topk, pv, form),
        cross_attention(gpu, model, form),
        feed_forward(gpu, model, form),
    )
    for part in parts:
        for kind, times in part.items():
            for time in times if isinstance(times, list) else [times]:
                found[kind] = found.get(kind, NOTHING) + time
    return {kind: time * model.layers for kind, time in found.items()}


def floor(gpu: GPU, model: Model, topk: float, pv: str) -> float:
    """Seconds of a step that nothing but products and bytes takes, at the published rates: of the linears, both
    attentions, and each other kernel's bytes."""
    width, ffn, tokens = model.width, model.ffn, model.tokens
    linear = gpu.clocks("int8", 2.0 * tokens * width * (6 * width + 2 * ffn))
    pairs = selected_pairs(model, topk)
    sparse = pairs * (sage_clocks(gpu, pv) if pv else 2 * gpu.clocks("bf16", BLOCK))
    cross = gpu.clocks("bf16", 4.0 * tokens * TEXT * width)
    moved = sum(time.seconds for kind, time in step(gpu, model, topk, pv).items() if kind in STREAMED) * BANDWIDTH
    return model.layers * gpu.seconds(linear + sparse + cross) + moved
