"""benchmarks/setup_size.py, and what the Makefile says and does before it installs."""

import subprocess
from pathlib import Path

import pytest
from packaging.tags import Tag

from benchmarks.setup_size import wheel_bytes

ROOT = Path(__file__).resolve().parents[2]
ORDER = {Tag("cp311", "cp311", "linux_x86_64"): 0, Tag("py3", "none", "any"): 1}


def wheel(name: str, size: int) -> dict[str, object]:
    return {"url": f"https://example.org/a/{name}", "size": size}


def test_the_wheel_that_pip_would_take_counts() -> None:
    wheels = [
        wheel("a-1.0-py3-none-any.whl", 1),
        wheel("a-1.0-cp311-cp311-win_amd64.whl", 2),
        wheel("a-1.0%2Bcpu-cp311-cp311-linux_x86_64.whl", 3),
    ]
    assert wheel_bytes({"wheels": wheels, "sdist": {"size": 9}}, ORDER) == 3
    assert wheel_bytes({"wheels": wheels[:2]}, ORDER) == 1
    assert wheel_bytes({"wheels": wheels[1:2], "sdist": {"size": 9}}, ORDER) == 9
    assert wheel_bytes({"sdist": {"size": 9}}, ORDER) == 9


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "setup", "-W", "pyproject.toml", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_setup_says_what_it_downloads_before_it_does() -> None:
    lines = make("--dry-run").stdout.splitlines()
    said = next(n for n, line in enumerate(lines) if line.startswith("echo") and "3.4 GB" in line)
    assert said < next(n for n, line in enumerate(lines) if "pip install" in line)
    assert "TORCH_INDEX=URL" in lines[said]


@pytest.mark.parametrize(
    ("installer", "tool", "option"), [("pip", "-m pip install", "--index-url"), ("uv", "uv pip install", "--index")]
)
def test_torch_comes_from_the_index_that_is_named_and_the_rest_from_the_usual_one(
    installer: str, tool: str, option: str
) -> None:
    index = "https://user:secret@example.org/cpu"
    lines = make("--dry-run", f"INSTALLER={installer}", f"TORCH_INDEX={index}").stdout.splitlines()
    installs = [line for line in lines if tool in line]
    assert len(installs) == 2
    assert f'{option} "{index}"' in installs[0] and "--no-deps" in installs[0]
    assert installs[0].endswith("torch torchvision") and "--constraint constraints.txt" in installs[0]
    assert "index" not in installs[1] and installs[1].endswith("--editable '.[dev]'")
    assert not any("secret" in line for line in lines if line.startswith("echo"))


def test_an_installer_that_is_not_known_is_refused_before_anything_is_made() -> None:
    done = make("INSTALLER=conda")
    assert done.returncode != 0
    assert "INSTALLER='conda': unknown. Choose pip or uv" in done.stdout
