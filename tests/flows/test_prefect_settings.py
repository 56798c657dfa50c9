"""flows/prefect_settings.py: what Prefect cannot read is a line, and other errors are shown as ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import PROJECT


def ended(folder: Path, program: str = "import flows\nfrom prefect import flow", **environment: str) -> str:
    """What a program says as it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    told = {**kept, "PYTHONPATH": str(PROJECT), "PREFECT_HOME": str(folder / "home"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=told, text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "abc", "Input should be a valid integer"),
        ("PREFECT_LOGGING_LEVEL", "loud", "Input should be 'DEBUG', 'INFO'"),
    ],
)
def test_a_wrong_variable_is_named_with_the_mend(tmp_path: Path, name: str, value: str, what: str) -> None:
    said = ended(tmp_path, **{name: value})
    assert f"Prefect cannot read its settings: {name}={value!r}: {what}" in said
    assert said.splitlines()[-1].endswith("Change it, or unset it") and "Traceback" not in said


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("[profiles")
    said = ended(tmp_path, PREFECT_PROFILES_PATH=str(tmp_path / "profiles.toml"))
    assert f"It is set in {tmp_path / 'profiles.toml'}, prefect.toml" in said and "Traceback" not in said
    (tmp_path / "prefect.toml").write_text("[api]\nrequest_timeout = 'x'\n")
    assert "request_timeout='x': Input should be a valid number" in ended(tmp_path)


def test_other_errors_are_shown_as_ever(tmp_path: Path) -> None:
    said = ended(tmp_path, "import flows\nraise ValueError('ours')")
    assert said.startswith("Traceback") and said.endswith("ValueError: ours\n")
