"""What the live server says about its nodes."""

import pytest


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    return server.client.object_info()
