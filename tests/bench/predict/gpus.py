"""What the makers publish of the GPUs that are predicted: dense rates of the tensor cores, without sparsity."""

from typing import NamedTuple

BLOCK = 128 * 64 * 128 * 2  # FLOP of one product of 128 queries and 64 keys, or of as many elsewhere, head_dim 128


class GPU(NamedTuple):
    """Rates in 10^12 FLOP/s, with float32 sums in "bf16", "fp16" and "fp8" and float16 sums in "fp8, float16 sums"."""

    target: str  # of the ahead-of-time compiler
    multiprocessors: int
    clock: float  # GHz, boost
    bandwidth: float  # GB/s
    rates: dict[str, float]

    def clocks(self, kind: str, flop: float) -> float:
        """Clocks of one multiprocessor's tensor cores for `flop` of the kind."""
        return flop * self.multiprocessors * self.clock * 1e9 / (self.rates[kind] * 1e12)

    def seconds(self, clocks: float) -> float:
        """Of clocks that all multiprocessors share."""
        return clocks / (self.multiprocessors * self.clock * 1e9)


def _rates(bf16: float, int8: float, fp8: float = 0.0, fp8_float16: float = 0.0) -> dict[str, float]:
    return {"bf16": bf16, "fp16": bf16, "int8": int8, "fp8": fp8, "fp8, float16 sums": fp8_float16}


GPUS = {
    "RTX 3090": GPU("sm_86", 82, 1.695, 936, _rates(71, 284)),
    "RTX 4090": GPU("sm_89", 128, 2.52, 1008, _rates(165.2, 660.6, 330.3, 660.6)),
    "RTX 5090": GPU("sm_120", 170, 2.407, 1792, _rates(209.5, 838, 419, 838)),
    "A100 80 GB": GPU("sm_80", 108, 1.41, 2039, _rates(312, 624)),
    "H100 SXM": GPU("sm_90", 132, 1.83, 3350, _rates(989.4, 1978.9, 1978.9)),
    "H200": GPU("sm_90", 132, 1.83, 4800, _rates(989.4, 1978.9, 1978.9)),
}
# Seconds a step of the published TurboDiffusion models, from its README (5090, 4 steps), and other operators' times.
PUBLISHED = {("T2V 1.3B 480p", "RTX 5090"): 1.9 / 4, ("T2V 14B 720p", "RTX 5090"): 24 / 4}
