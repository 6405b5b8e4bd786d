"""The tests marked `gpu`, unchanged, on a simulated device: a plain run takes a part of those of the kernels on 8.0,
`--simulated 90` all on 9.0, `--simulated all` all on each compute capability."""

import pytest

from ..cases import ALL
from .run import require_device, run_pytest
from .settings import Devices

# Attention in 16 and in 8 bits, int8 linear with each epilogue, quantizers, norms, the block map; not in float16.
QUICK = (
    "not dtype1 and (test_triton_norm or test_quantizers or test_linear or test_gate_residual or test_gelu "
    "or test_both_branches or test_map_of_exact_scores or (test_triton_sla and test_any_length and 129) "
    "or (test_the_sparse_branch_alone and dtype2))"
)
WITHOUT_ATTENTION = "test_triton_int8 or test_triton_norm or test_top_blocks or test_map or test_codes"  # see cases.py


def pytest_generate_tests(metafunc):
    if "capability" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption("--simulated")
    plain = option == "quick"
    capabilities = (80,) if plain else ALL if option == "all" else (int(option),)
    chosen = [(c, QUICK if plain else WITHOUT_ATTENTION if c == 100 else "") for c in capabilities]
    ids = [f"sm_{capability}-{'part' if selected else 'all'}" for capability, selected in chosen]
    metafunc.parametrize(("capability", "selected"), chosen, ids=ids)


def test_the_gpu_tests_pass(capability, selected):
    require_device()
    chosen = ("-k", selected) if selected else ()
    output = run_pytest(Devices(capability=capability), "tests/kernels", "-m", "gpu", "-rs", "--durations=10", *chosen)
    print(output)


@pytest.mark.parametrize(
    "selected", [pytest.param("tiles or decode", id="part"), pytest.param("", id="all", marks=pytest.mark.thorough)]
)
def test_the_memory_of_a_step_and_a_decode_in_16_bits(selected):
    require_device()
    files = [f"tests/turbo_core/host/test_{name}.py" for name in ("step_memory", "decode")]
    run_pytest(Devices(), *files, "-m", "gpu", "-k", selected)
