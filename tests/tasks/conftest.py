"""What stages start to load a network anew, or to see what memory it takes, is a fork of one process: it would import
torch each time. For a test that is marked `by_itself` it is a program by itself, as outside of tests."""

from types import SimpleNamespace

import pytest

from tests import forked
from thinner.measure import memory, verify


@pytest.fixture(autouse=True)
def _new_processes_are_forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("by_itself") is None:
        for module in (memory, verify):
            monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=forked.run))
