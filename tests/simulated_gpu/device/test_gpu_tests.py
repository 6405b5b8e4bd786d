"""The tests marked `gpu` (tests/kernels/test_triton_*.py), unchanged, on a simulated device. A plain run takes a part of
them for compute capability 8.0, `--simulated 90` all for 9.0, `--simulated all` all for each."""

from ..cases import ALL
from .run import require_device, run_pytest
from .settings import Devices

# Attention in 16 and in 8 bits, int8 linear with each epilogue, quantizers, norms, the block map.
QUICK = (
    "test_triton_norm or test_quantizers or test_linear or test_gate_residual or test_gelu or test_both_branches "
    "or test_map_of_exact_scores or (test_triton_sla and test_any_length and 129) "
    "or (test_the_sparse_branch_alone and dtype1)"
)


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("--simulated")
    quick = option == "quick"
    capabilities = ALL if option == "all" else (80,) if quick else (int(option),)
    metafunc.parametrize("capability, selected", [(c, QUICK if quick else "") for c in capabilities], ids=str)


def test_the_gpu_tests_pass(capability, selected):
    require_device()
    devices = Devices(capability=capability)
    print(run_pytest(devices, "tests/kernels", "-m", "gpu", "--durations=0", *(("-k", selected) if selected else ())))
