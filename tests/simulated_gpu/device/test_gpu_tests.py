"""The tests marked `gpu` (tests/kernels/test_triton_*.py), unchanged, on a simulated device of compute capability 8.0; a
plain run takes a part of them. On 8.6, 8.9 and 12.0 those of attention in float32 need more shared memory than there
is."""

import pytest

from .run import require_device, run_pytest
from .settings import Devices

# Attention in 16 and in 8 bits, int8 linear with each epilogue, quantizers, norms, the block map.
QUICK = (
    "test_triton_norm or test_quantizers or test_linear or test_gate_residual or test_gelu or test_both_branches "
    "or test_map_of_exact_scores or (test_triton_sla and test_any_length and 129) "
    "or (test_the_sparse_branch_alone and dtype1)"
)


@pytest.mark.parametrize(
    "selected", [pytest.param(QUICK, id="part"), pytest.param("", id="all", marks=pytest.mark.thorough)]
)
def test_the_gpu_tests_pass(selected):
    require_device()
    chosen = ("-k", selected) if selected else ()
    print(run_pytest(Devices(), "tests/kernels", "-m", "gpu", "--durations=0", *chosen))


@pytest.mark.parametrize(
    "selected", [pytest.param("tiles", id="part"), pytest.param("", id="all", marks=pytest.mark.thorough)]
)
def test_a_step_takes_the_memory_that_is_accounted(selected):
    require_device()
    run_pytest(Devices(), "tests/turbo_core/host/test_step_memory.py", "-m", "gpu", "-k", selected)
