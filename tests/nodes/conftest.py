import pytest


@pytest.fixture(scope="session")
def text_server(server):
    """The shared server with a small text encoder and tiny models for it."""
    from td_pack.tests.support import text_encoders

    text_encoders.write_small_models(server.models_dir)
    return server
