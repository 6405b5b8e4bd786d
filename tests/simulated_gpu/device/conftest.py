"""A plain run leaves out the longer tests of the simulated device."""

import pytest
from td_pack.tests.simulated_gpu.device.settings import Control


def pytest_collection_modifyitems(config, items):
    """Deselects those marked `thorough`, unless --simulated asks for them."""
    if config.getoption("--simulated") in ("80", "all"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """What a server's device is told to do, and what it counts."""
    return Control(tmp_path_factory.mktemp("control") / "control")
