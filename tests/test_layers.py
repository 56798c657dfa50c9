"""Imports point down only: flows -> tasks -> thinner; each tool is spoken to in one place."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import thinner
import thinner.sources as thinner_sources
import thinner.store as thinner_store

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for package in ("thinner", "tasks", "flows") for p in (ROOT / package).rglob("*.py"))

FORBIDDEN = {
    "thinner": {"tasks", "flows", "prefect", "mlflow", "dvc"},
    "tasks": {"flows", "prefect"},
    "flows": {"mlflow", "dvc"},
}
# Each tool is spoken to in one place; DVC's remotes in a second one.
ONLY = {"dvc": ("tasks/lineage.py", "tasks/remote.py"), "mlflow": "tasks/record/"}
# The rooms of thinner, and the modules that stand alone: each imports from those before it, and from its own room.
ORDER = [
    "errors",
    "words",
    "files",
    "data",
    "sources",  # these two are data's by the names that they had
    "store",
    "networks",
    "runtimes",
    "predict",
    "measure",
    "evidence",
    "learn",
    "compress",
    "params",
    "layout",
    "checks",
    "config",
    "ship",
    "network",
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
def test_each_tool_is_talked_to_in_one_place(tool: str) -> None:
    places = [str(path.relative_to(ROOT)) for path in MODULES if tool in imported(path)]
    assert places and all(place.startswith(ONLY[tool]) for place in places)


NAMES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}


def ours(path: Path) -> set[str]:
    """Our own modules that the file imports, wherever in the file; but for those that only a type checker reads."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    found: set[str] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("thinner.") and "__init__" not in name])
def test_a_room_imports_from_those_before_it(name: str) -> None:
    def place(module: str) -> int:
        return ORDER.index(module.split(".")[1])

    wrong = {other for other in ours(NAMES[name]) if other.startswith("thinner.") and place(other) > place(name)}
    assert not wrong, f"{name} stands before {wrong} in ORDER"


def test_no_modules_import_each_other_in_a_circle() -> None:
    tuple(graphlib.TopologicalSorter({name: ours(path) - {name} for name, path in NAMES.items()}).static_order())


def test_every_room_and_every_module_has_its_place() -> None:
    paths = (ROOT / "thinner").rglob("*.py")
    there = {path.relative_to(ROOT / "thinner").parts[0].removesuffix(".py") for path in paths}
    assert there - {"__init__"} == set(ORDER)
    for room in (name for name in ORDER if (ROOT / "thinner" / name).is_dir()):
        (body,) = ast.parse((ROOT / "thinner" / room / "__init__.py").read_text()).body
        assert isinstance(body, ast.Expr), f"{room}/__init__.py says what is in the room, and does nothing"


def test_what_peoples_own_code_takes_is_there_by_its_short_name() -> None:
    assert thinner_store.decode is importlib.import_module("thinner.data.store").decode
    assert thinner_sources.list_source is importlib.import_module("thinner.data.sources").list_source
    assert not {name for name, path in NAMES.items() if {"thinner.store", "thinner.sources"} & ours(path)}
    stub = (ROOT / "thinner" / "__init__.pyi").read_text()
    for name, room in thinner._MODULES.items():
        assert getattr(thinner, name) is importlib.import_module(f"thinner.{room}.{name}")
        assert f"from thinner.{room} import {name} as {name}" in stub


@pytest.mark.parametrize("package", ["thinner", "tasks"])
def test_importing_a_package_does_nothing(package: str) -> None:
    # dvc.yaml names modules as dependencies, not __init__.py; so there must be no code in there
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    lazy = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef) and (package, node.name) == ("thinner", "__getattr__")
    ]
    # and how often garbage is looked for, what OpenMP reads when torch is imported, and which process a program is,
    # which change no result
    early = ["import atexit", "import gc", "import os", "import sys", "from tasks.machine import TORCH"]
    early += [
        "if sys.argv[:1] == ['-m'] and 'THINNER_FORKS' in os.environ:\n"
        "    from tasks import forks\n    forks.hand_over()"
    ]
    early += ["for _name, _value in TORCH.items():\n    os.environ.setdefault(_name, _value)"]
    if package == "thinner":
        early = [
            "import sys",
            "if sys.argv[:1] == ['-m']:\n    import atexit\n    import gc\n    atexit.register(gc.freeze)",
        ]
    lazy += [node for node in body if ast.unparse(node) in early]
    assert all(isinstance(node, ast.Expr | ast.Assign) for node in body if node not in lazy)


def test_importing_thinner_imports_nothing_else_and_no_stage_depends_on_what_is_public() -> None:
    script = "import sys; before = set(sys.modules); import thinner; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "['thinner']"
    graph = (ROOT / "dvc.yaml").read_text()
    assert "thinner/__init__.py" not in graph and "thinner/network.py" not in graph
