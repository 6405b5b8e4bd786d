import pytest
from td_pack.kernels import dispatch
from td_pack.kernels.backends import BACKENDS


def pytest_collection_modifyitems(items):
    """`pytest -m gpu tests/kernels` is what to run on a machine with a GPU: there these tests run the kernels for
    real."""
    for item in items:
        if item.path.name.startswith("test_triton_"):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def availability(monkeypatch):
    """Sets by name why backends are not available, None for those that are. What was decided per device before is
    forgotten."""

    def change(**reasons: str | None) -> None:
        rows = (
            row._replace(unavailable=lambda device, reason=reasons[row.name]: reason) if row.name in reasons else row
            for row in BACKENDS
        )
        monkeypatch.setattr(dispatch, "BACKENDS", tuple(rows))
        dispatch.unavailable.cache_clear()

    yield change
    dispatch.unavailable.cache_clear()
