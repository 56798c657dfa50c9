"""benchmarks/mutants.py: what it copies and how it counts. mutmut itself is no dependency of the tests."""

import functools
import subprocess
from pathlib import Path

import pytest

from benchmarks import mutants

RESULTS = """
    thinner.data.views.x_draw__mutmut_1: killed
    thinner.data.views.x_draw__mutmut_2: survived
    thinner.data.views.x_draw__mutmut_3: timeout
    thinner.data.views.xǁPolicyǁstill__mutmut_1: no tests
    thinner.data.views.x_send__mutmut_1: not checked
"""


def test_what_fails_a_test_or_never_ends_is_killed_and_what_was_not_tried_does_not_count() -> None:
    found = mutants.outcomes(RESULTS)
    assert list(found.values()) == ["killed", "survived", "timeout", "no tests", "not checked"]
    assert mutants.row("views", found) == ("| views | 4 | 2 | 1 | 1 | 50.0% |", 0.5)


def test_the_copy_mutates_one_module_and_runs_its_fast_tests(tmp_path: Path) -> None:
    module, tests = (
        mutants.only(Path(folder), name) for folder, name in (("thinner", "views.py"), ("tests", "test_views.py"))
    )
    mutants.copied(module, [tests, Path("tests/other.py")], tmp_path, "slow or long")
    settings = (tmp_path / "pyproject.toml").read_text()
    assert f'only_mutate = ["{module}"]' in settings and f"['{tests}', 'tests/other.py']" in settings
    assert '"-k", "not (slow or long)"]' in settings
    assert "jaxtyping-packages" not in settings and "--strict-markers" in settings
    assert (tmp_path / module).read_text() == mutants.undecorated((mutants.ROOT / module).read_text())


DECORATED = """
def twice(f):
    return lambda *args: 2 * f(*args)


def plus(n):
    return lambda f: lambda *args: n + f(*args)


@twice
@plus(
    1
)
def three(x):
    @twice
    def inner():
        return x
    return inner()


class Of:
    @property
    @functools.cache
    def kept(self):
        return 5

    @property
    def four(self):
        return 4
"""


def test_functions_are_bare_of_decorators_and_mean_the_same() -> None:
    found = mutants.undecorated(DECORATED)
    assert [line.strip() for line in found.splitlines() if "@" in line] == ["@property", "@functools.cache"]
    results = []
    for text in (DECORATED, found):
        names: dict[str, object] = {"functools": functools}
        exec(text, names)
        results.append((names["three"](3), names["Of"]().four, names["Of"]().kept))
    assert results == [(14, 4, 5)] * 2  # 2 * (1 + 2 * 3)


def test_a_room_tells_apart_two_modules_of_one_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: object())
    assert mutants.main(["store", "--work", str(tmp_path)]) == 1
    assert "2 files of that name (thinner/data/store.py, thinner/store.py)." in capsys.readouterr().err

    def mutmut(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        text = RESULTS if "results" in command else "a change"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(mutants.subprocess, "run", mutmut)
    assert mutants.main(["data/store", "--work", str(tmp_path)]) == 0
    assert "| data/store | 4 | 2 | 1 | 1 | 50.0% |" in capsys.readouterr().out
    settings = (tmp_path / "data/store/pyproject.toml").read_text()
    assert '["thinner/data/store.py"]' in settings and "['tests/thinner/test_store.py']" in settings
    assert (tmp_path / "data/store/survivors.diff").read_text() == "a change"


def test_what_does_not_work_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: None)
    assert mutants.main(["views", "--work", str(tmp_path)]) == 1
    assert "pip install mutmut" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: object())
    assert mutants.main(["vews", "--work", str(tmp_path)]) == 1
    assert "thinner/**/vews.py: 0 files of that name" in capsys.readouterr().err
    failed = subprocess.CompletedProcess([], 3, stdout="no tests ran")
    monkeypatch.setattr(mutants.subprocess, "run", lambda *args, **how: failed)
    assert mutants.main(["views", "--work", str(tmp_path)]) == 1
    assert "mutmut run --max-children 1: exit code 3" in capsys.readouterr().err
