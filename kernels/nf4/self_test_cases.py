"""The call on which a backend of NF4 is compared with the definition."""

from collections.abc import Iterator

import torch

from ..self_test import Case


def nf4(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """A weight whose last block is ragged."""
    yield Case(
        "nf4_dequantize",
        {
            "codes": torch.randint(256, (1000,), generator=generator, dtype=torch.uint8),
            "absmax": torch.randn(32, generator=generator).abs(),
            "quant_map": torch.randn(16, generator=generator),
            "nested_absmax": None,
            "nested_quant_map": None,
            "nested_offset": 0.0,
            "blocksize": 64,
            "nested_blocksize": 256,
            "rows": 20,
            "columns": 100,
            "dtype": torch.float32,
        },
        exact=("absmax", "quant_map"),
    )
