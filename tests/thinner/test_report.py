"""thinner.evidence.report: README's results are put between their marks, and checked."""

from pathlib import Path

import pytest

from tests.measured import ENVIRONMENT, METRICS, write_inputs
from thinner.errors import UserError
from thinner.evidence.report import BEGIN, END, main, render_readme, update_readme
from thinner.evidence.results import Results


def test_a_readme_shows_the_networks_and_only_what_is_not_proven() -> None:
    proven = {"claim": "prune beats scratch on accuracy", "kind": "beats", "outcome": "proven", "numbers": "+9 points"}
    open_ = {"claim": "prune beats distill on accuracy", "kind": "beats", "outcome": "refuted", "numbers": "-9 points"}
    text = render_readme(METRICS, ENVIRONMENT, "prune", [proven])
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["finetune", "distill", "**prune**", "prune_onnx"] and "+9 points" not in text
    assert "To ship: prune" in text and max(map(len, text.splitlines())) <= 120
    text = render_readme(METRICS, ENVIRONMENT, "prune", [proven, open_])
    assert "| **refuted** | prune beats distill on accuracy | -9 points |" in text and "+9 points" not in text
    assert "Nothing is ready to ship" in text


def test_readme_gets_the_table_between_its_marks_and_only_there(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    assert update_readme(readme, "| a |\n")
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n| a |\n{END}\n\nThe rest.\n"
    assert not update_readme(readme, "| a |\n")


@pytest.mark.parametrize("text", ["no marks", f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_readme_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match="needs one line"):
        update_readme(readme, "| a |")
    assert readme.read_text() == text


def test_command_updates_a_readme_and_check_says_whether_it_is_todays(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports, _ = write_inputs(tmp_path, results)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = ["--readme", str(readme), "--reports", str(reports)]
    assert main([*options, "--check"]) == 1
    assert "Run: python -m thinner.evidence.report --readme" in capsys.readouterr().err
    assert main(options) == 0
    assert main([*options, "--check"]) == 0
    readme.write_text(readme.read_text().replace("70.0 %", "99.0 %"))
    assert main([*options, "--check"]) == 1


def test_command_explains_a_missing_readme(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports, _ = write_inputs(tmp_path, results)
    assert main(["--readme", str(tmp_path / "none.md"), "--reports", str(reports)]) == 1
    assert "none.md" in capsys.readouterr().err
