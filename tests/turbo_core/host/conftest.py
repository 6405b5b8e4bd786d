"""Tiny models, loaded once for each file of tests."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import loaded
from torch._dynamo.utils import counters


@pytest.fixture(scope="module")
def one_thread():
    """For tensors so small that on a busy machine more threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_graphs():
    """Nothing is compiled before the test nor left after it, and no graph break is counted."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def experts(folder):
    return [
        loaded(folder / f"{name}.pth", checkpoints.upstream_state_dict(seed, in_channels=36))
        for name, seed in (("high", 21), ("low", 22))
    ]


@pytest.fixture(scope="module")
def sparse_path(folder):
    """A checkpoint with trained proj_l: both of its blocks are sparse."""
    return str(checkpoints.write_pth(folder / "sla.pth", checkpoints.upstream_state_dict(31, sla=True)))


@pytest.fixture(scope="module")
def t2v(folder):
    return loaded(folder / "t2v.pth", checkpoints.upstream_state_dict(11))
