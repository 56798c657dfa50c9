"""What holds for all tests: one thread each, no folder of the machine's own, and what is compiled stays compiled."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest


def _end_prefect(share):
    if (share / "prefect.pid").exists():
        from tests import prefects

        prefects.end(share)


# hundreds of programs start here: where the environment says that none may keep its bytecode, each would compile us anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# nothing is garbage while tests are collected, and what was imported stays: to look through it takes seconds, each time
gc.disable()

# before torch is imported: with a thread per core, small tensors spend their time waiting for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "TESTS_SHARE" not in os.environ:  # the first process of all, whose workers inherit it
    os.environ["TESTS_SHARE"] = tempfile.mkdtemp(prefix="thinner-tests-")
    atexit.register(shutil.rmtree, os.environ["TESTS_SHARE"], ignore_errors=True)
    atexit.register(_end_prefect, Path(os.environ["TESTS_SHARE"]))
os.environ.setdefault("DVC_SITE_CACHE_DIR", os.path.join(os.environ["TESTS_SHARE"], "site-cache"))


# what a busy server costs is one test's to show, with the real seconds: others need its answer
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


@pytest.fixture(autouse=True)
def _as_before():
    """Some tests change torch's number of threads, or the code that they try changes the environment; none may leave
    it changed for the next."""
    import torch

    torch.set_num_threads(1)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() | before.keys():
        if name == "PYTEST_CURRENT_TEST" or os.environ.get(name) == before.get(name):
            continue
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture(scope="session")
def prefect_url() -> str:
    """A Prefect server for all tests of flows that are not about the server which a run starts by itself."""
    from tests import prefects

    return prefects.url(Path(os.environ["TESTS_SHARE"]))


class Failures:
    """Names what fails as soon as it has: a run that is cut short would not come to say it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)", red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config))


# a quarter of an hour, ten minutes in one test, and two of four minutes
LONGEST = ("test_end_to_end.py", "test_first_hour.py", "test_engines.py")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """What is long is no fast test either. The longest files first, then those with most long tests: with a file for a
    worker, one that comes late would end alone (`make test`)."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("integration")
    long = Counter(item.path for item in items if item.get_closest_marker("integration"))
    items.sort(key=lambda item: (item.path.name not in LONGEST, -long[item.path]))


@pytest.fixture
def unchecked(monkeypatch):
    """Nobody checks shapes and types of arguments meanwhile: for tests of what refuses wrong ones itself."""
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)
