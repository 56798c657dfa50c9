"""Imports point down only: flows -> tasks -> thinner; each tool is spoken to in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for package in ("thinner", "tasks", "flows") for p in (ROOT / package).rglob("*.py"))

FORBIDDEN = {
    "thinner": {"tasks", "flows", "prefect", "mlflow", "dvc"},
    "tasks": {"flows", "prefect"},
    "flows": {"mlflow", "dvc"},
}
ONLY = {
    "dvc": {"tasks/lineage.py"},
    # runs; candidates as runs and models; the registry; and what is copied into each model
    "mlflow": {
        "tasks/mlflow_db.py",
        "tasks/tracking.py",
        "tasks/unsent.py",
        "tasks/candidates.py",
        "tasks/registry.py",
        "tasks/served.py",
    },
}
# from the numbers to README's table: each imports from those before it only
REPORTING = [
    "candidates",
    "results",
    "answers",
    "comparisons",
    "charts",
    "prediction_charts",
    "glossary",
    "page",
    "markdown",
    "report",
]


def imported(path: Path) -> set[str]:
    """Top-level packages that the file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; the other files name their package"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not imported(path) & FORBIDDEN[package]


@pytest.mark.parametrize("tool", sorted(ONLY))
def test_each_tool_is_talked_to_in_few_places(tool: str) -> None:
    assert {str(p.relative_to(ROOT)) for p in MODULES if tool in imported(p)} == ONLY[tool]


def test_leaves_of_thinner_import_no_module_above_them() -> None:
    above = {"config", "checks", "training", "checkpoint", "predict", *REPORTING}
    leaves = {
        "sources",
        "store",
        "views",
        "models",
        "losses",
        "criteria",
        "pruning",
        "corruptions",
        "masks",
        "profiling",
        "metrics",
        "statistics",
        "scores",
        "imbalance",
        "export",
    }
    for path in (ROOT / "thinner").glob("*.py"):
        if path.stem in leaves:
            names = {
                f"{node.module}.{alias.name}"
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            assert not {name.split(".")[1] for name in names if name.startswith("thinner.")} & above, path


def test_what_makes_the_page_imports_one_way() -> None:
    for place, name in enumerate(REPORTING):
        nodes = ast.walk(ast.parse((ROOT / "thinner" / f"{name}.py").read_text()))
        names = {
            word
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for word in (str(node.module).removeprefix("thinner."), *(alias.name for alias in node.names))
        }
        assert not names & set(REPORTING[place:]), name


@pytest.mark.parametrize("package", ["thinner", "tasks"])
def test_importing_a_package_does_nothing(package: str) -> None:
    # dvc.yaml names modules as dependencies, not __init__.py; so there must be no code in there
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    lazy = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef) and (package, node.name) == ("thinner", "__getattr__")
    ]
    # and what OpenMP reads when torch is imported, which changes no result
    early = ["import os", "from tasks.environment import TORCH"]
    early += ["for _name, _value in TORCH.items():\n    os.environ.setdefault(_name, _value)"]
    lazy += [node for node in body if package == "tasks" and ast.unparse(node) in early]
    assert all(isinstance(node, ast.Expr | ast.Assign) for node in body if node not in lazy)


def test_importing_thinner_imports_nothing_else_and_no_stage_depends_on_what_is_public() -> None:
    script = "import sys; before = set(sys.modules); import thinner; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "['thinner']"
    graph = (ROOT / "dvc.yaml").read_text()
    assert "thinner/__init__.py" not in graph and "thinner/network.py" not in graph
