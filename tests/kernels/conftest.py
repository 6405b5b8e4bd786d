import pytest


@pytest.fixture(scope="session")
def compiler():
    from td_pack.tests.support.aot import Compiler

    compiler = Compiler()
    yield compiler
    compiler.close()
