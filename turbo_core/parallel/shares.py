"""Which tokens and heads each rank has."""

from ..errors import TurboError

TILE = 128  # tokens: a block of queries, and a tile of `upstream` activation scales, stay on one rank


def check_heads(heads: int, ranks: int) -> None:
    """Raises TurboError unless attention heads can be divided among ranks."""
    if heads % ranks:
        works = ", ".join(str(count) for count in range(2, heads + 1) if heads % count == 0)
        raise TurboError(
            f"The {heads} attention heads of this model cannot be divided among {ranks} GPUs: set gpus to one of "
            f"{works}."
        )


def token_slices(tokens: int, ranks: int) -> list[slice]:
    """The tokens of each rank, in order: whole tiles, of which one rank has at most one more than another; the last
    tile may be partial. Raises TurboError for fewer tiles than ranks."""
    tiles = -(-tokens // TILE)
    if tiles < ranks:
        raise TurboError(
            f"This video has {tokens} tokens, {tiles} tiles of {TILE}, too few for {ranks} GPUs: make it larger or "
            "longer, or set gpus to less."
        )
    edges = [min(tokens, tiles * rank // ranks * TILE) for rank in range(ranks + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def exchanged_bytes(tokens: int, rank: int, ranks: int, dim: int, itemsize: int) -> int:
    """The bytes that a rank sends in the self-attention of one layer and one video: of q, k and v the heads of the
    others, and of the output the tokens of the others."""
    own = token_slices(tokens, ranks)[rank]
    count = own.stop - own.start
    heads_of_others = 3 * count * (dim - dim // ranks)
    tokens_of_others = (tokens - count) * (dim // ranks)
    return itemsize * (heads_of_others + tokens_of_others)
