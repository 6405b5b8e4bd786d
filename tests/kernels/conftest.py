import pytest
from td_pack.tests.support import interpreter  # noqa: F401 - before any test module imports a kernel
from td_pack.tests.support.aot import Compiler


@pytest.fixture(scope="session")
def compiler():
    compiler = Compiler()
    yield compiler
    compiler.close()
