"""What all backends of sparse attention share: the sizes of query and key blocks, and how many key blocks are
selected."""

BLOCK_Q = 128
BLOCK_K = 64


def block_count(length: int, block: int) -> int:
    """Blocks of `block` tokens that cover `length` tokens."""
    return -(-length // block)


def selected_blocks(length: int, topk: float, block_k: int = BLOCK_K) -> int:
    """Key blocks that each query block attends to: floor(topk * blocks), and at least one.

    Upstream has no lower bound and returns NaN for short sequences."""
    return max(1, int(topk * block_count(length, block_k)))
