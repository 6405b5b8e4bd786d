"""Tiny models, loaded once for each file of tests."""

import pytest
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.host.load import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def experts(folder):
    return [
        load_model(
            str(checkpoints.write_pth(folder / f"{name}.pth", checkpoints.upstream_state_dict(seed, in_channels=36)))
        )
        for name, seed in (("high", 21), ("low", 22))
    ]


@pytest.fixture(scope="module")
def sparse_path(folder):
    """A checkpoint with trained proj_l: both of its blocks are sparse."""
    return str(checkpoints.write_pth(folder / "sla.pth", checkpoints.upstream_state_dict(31, sla=True)))


@pytest.fixture(scope="module")
def t2v(folder):
    return load_model(str(checkpoints.write_pth(folder / "t2v.pth", checkpoints.upstream_state_dict(11))))
