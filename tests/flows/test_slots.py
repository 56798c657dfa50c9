"""GPU slots: which devices a params.yaml uses, how many stages may share one, and that Prefect's limit holds."""

import logging
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from flows import slots
from tests.servers import PATIENCE
from tests.toy import eventually
from thinner.errors import UserError

TWO = ("GPU-aaaa", "GPU-bbbb")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(slots, "_gpus", lambda: TWO)
    monkeypatch.setattr(slots.socket, "gethostname", lambda: "host")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return tmp_path


def write(root: Path, device: str, devices: int = 1) -> Path:
    (root / "params.yaml").write_text(f"run: {{device: {device}, devices: {devices}}}\n")
    return root


@pytest.mark.parametrize(
    ("device", "devices", "visible", "names"),
    [
        ("cpu", 1, None, []),
        ("auto", 1, None, ["thinner-host-GPU-aaaa"]),
        ("cuda", 2, None, ["thinner-host-GPU-aaaa", "thinner-host-GPU-bbbb"]),
        ("cuda", 1, "1,0", ["thinner-host-GPU-bbbb"]),
        ("cuda", 1, "GPU-bb", ["thinner-host-GPU-bbbb"]),
        ("cuda", 1, "MIG-cccc", ["thinner-host-MIG-cccc"]),
        ("cuda", 2, "1,7,0", ["thinner-host-GPU-bbbb"]),  # CUDA ends at the first that it does not know
        ("auto", 1, "", []),
        ("auto", 1, "-1", []),
    ],
)
def test_the_devices_are_those_that_cuda_shows(
    root: Path, monkeypatch: pytest.MonkeyPatch, device: str, devices: int, visible: str | None, names: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.devices(write(root, device, devices)) == names


def test_one_stage_has_a_device_until_git_says_otherwise(root: Path) -> None:
    assert slots.count(root) == 1
    subprocess.run(["git", "config", "thinner.slots", "3"], cwd=root, check=True)
    assert slots.count(root) == 3


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_a_number_of_slots_that_is_none_is_refused(root: Path, value: str) -> None:
    subprocess.run(["git", "config", "thinner.slots", value], cwd=root, check=True)
    with pytest.raises(UserError, match=rf"git config thinner.slots: .*{value}.*Set it: git config thinner.slots 1"):
        slots.count(root)


def test_without_a_gpu_no_server_is_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "get_client", None)
    with slots.held(write(root, "cpu"), logging.getLogger("test"), lambda: False):
        pass


@pytest.mark.integration
@pytest.mark.parametrize(("limit", "together"), [(1, 1), (2, 2)])
def test_at_most_so_many_hold_a_device_at_once(root: Path, prefect_url: str, limit: int, together: int) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    subprocess.run(["git", "config", "thinner.slots", str(limit)], cwd=root, check=True)
    write(root, "cuda", 2)
    inside: list[int] = []
    most: list[int] = []

    def hold() -> None:
        log = logging.getLogger("test")
        with temporary_settings({PREFECT_API_URL: prefect_url}), slots.held(root, log, lambda: False):
            inside.append(1)
            most.append(len(inside))
            eventually(lambda: max(most) >= together)
            time.sleep(1.5)  # in which one too many would come
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(most) == 3 and max(most) == together
