"""Programs that lie in no package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType


def load_program(file: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"bundled_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
