"""What tests of flows share."""

import pytest

from tests.toy import Toy


@pytest.fixture
def shared(toy: Toy, prefect_url: str) -> None:
    """The toy's runs are told to a server that is there already (tests/conftest.py)."""
    toy.env["PREFECT_API_URL"] = prefect_url
