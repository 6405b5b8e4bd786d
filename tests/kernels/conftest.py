import pytest
from td_pack.tests.support.aot import Compiler


def pytest_collection_modifyitems(items):
    """`pytest -m gpu tests/kernels` is what to run on a machine with a GPU: there these tests run the kernels for real."""
    for item in items:
        if item.path.name.startswith("test_triton_"):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def compiler():
    compiler = Compiler()
    yield compiler
    compiler.close()
