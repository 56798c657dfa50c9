"""What `make setup` downloads on this machine, by the package index's own sizes, and what it takes on the disk.

    python -m benchmarks.setup_size                        # wants uv, which resolves without downloading
    python -m benchmarks.setup_size openvino executorch    # with these extras

uv resolves pyproject.toml with constraints.txt into a lock file (PEP 751), which has the size of every wheel; counted
is the one that this Python and platform would take.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.tags import Tag, sys_tags
from packaging.utils import parse_wheel_filename

from thinner.errors import UserError

CUDA = ("nvidia-", "cuda-", "triton")  # what torch brings for NVIDIA's GPUs, beside its own wheel


def resolve(extras: Sequence[str] = ()) -> Mapping[str, Any]:
    """The lock file of what `make setup` installs, with ``extras``. Raises UserError where uv is not there or finds no
    solution."""
    uv = shutil.which("uv")
    if uv is None:
        raise UserError("uv was not found on PATH. Install it: pip install uv")
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "pylock.toml")
        command = [uv, "pip", "compile", "pyproject.toml", "--constraint", "constraints.txt"]
        command += [word for extra in ("dev", *extras) for word in ("--extra", extra)]
        command += ["--python", sys.executable, "--format", "pylock.toml", "--output-file", str(lock)]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode:
            raise UserError(done.stderr.strip())
        return tomllib.loads(lock.read_text())


def wheel_bytes(package: Mapping[str, Any], order: Mapping[Tag, int]) -> int:
    """The size of the package's wheel that comes first in ``order``; of its source where none fits."""
    fitting = []
    for wheel in package.get("wheels", []):
        tags = parse_wheel_filename(wheel["url"].rpartition("/")[2].replace("%2B", "+"))[3]
        if places := [order[tag] for tag in tags if tag in order]:
            fitting.append((min(places), int(wheel["size"])))
    return min(fitting)[1] if fitting else int(package["sdist"]["size"])


def main(extras: Sequence[str] = ()) -> int:
    try:
        packages = [package for package in resolve(extras)["packages"] if "wheels" in package or "sdist" in package]
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    order = {tag: place for place, tag in enumerate(sys_tags())}
    sizes = {package["name"]: wheel_bytes(package, order) for package in packages}
    cuda = sum(size for name, size in sizes.items() if name.startswith(CUDA))
    torch = sizes["torch"] + sizes["torchvision"]
    print(f"{len(sizes)} packages, {sum(sizes.values()) / 1e9:.2f} GB to download, of these")
    print(f"  CUDA's libraries {cuda / 1e9:.2f} GB")
    print(f"  torch and torchvision {torch / 1e9:.2f} GB")
    print(f"  the rest {(sum(sizes.values()) - cuda - torch) / 1e9:.2f} GB")
    files = [path for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink()]
    print(f"on the disk: {sum(path.stat().st_size for path in files) / 1e9:.1f} GB in {sys.prefix}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
