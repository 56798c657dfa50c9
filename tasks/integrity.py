"""Whether files are what their stages wrote: every byte is read again and compared with dvc.lock.

DVC believes a file unchanged while its time, size and inode are, and its cache's objects while they are read-only. A
bit that a disk or a memory flips changes none of these. What is found is brought back from DVC's cache, or from the
last commit; where no good copy is, it is removed, so that DVC makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks import lineage

OFF = "THINNER_VERIFY"  # "no": stages believe DVC, for inputs of which a reading takes too long
AGAIN = "it is made again by: thinner run"  # ends the message of a stage that cannot go on before others have run


@dataclass(frozen=True)
class Damage:
    """A file that is not what its stage wrote."""

    path: str  # below the repository's root, or below DVC's cache
    stage: str
    restored: str | None  # from where; None: removed, its stage makes it again

    def __str__(self) -> str:
        what = f"{self.path} is not what {self.stage} wrote (a flipped bit?)"
        if self.restored:
            return f"{what}; it is whole again, from {self.restored}"
        return f"{what}, and no good copy is left; it is removed, and {AGAIN}"


def mend_inputs(root: Path, inputs: lineage.Inputs) -> list[Damage]:
    """Look at all that a stage is about to read and that another one wrote."""
    if os.environ.get(OFF, "").lower() in ("no", "0", "false"):
        return []
    found: list[Damage] = []
    cache = _cache(root)
    outs = {out.path: out for out in lineage.locked_outs(root)}
    for path, md5 in inputs.deps.items():
        out = outs.get(path)
        if out is not None and out.md5 == md5:  # where DVC itself sees another, it is DVC's to say
            found += _mend(root, cache, out)
    # a folder around the results of several stages (prune_also, self_train)
    if within := [out for name, out in outs.items() if any(name.startswith(f"{path}/") for path in inputs.deps)]:
        believed = lineage.believed(root, [out.path for out in within])
        for out in within:
            if believed.get(out.path) == out.md5:
                found += _mend(root, cache, out)
    return found


def mend_all(root: Path, progress: Callable[[str], None] = lambda path: None) -> list[Damage]:
    """Look at every result that lies here, and at its copy in DVC's cache."""
    found: list[Damage] = []
    cache, believed = _cache(root), lineage.believed(root)
    for out in lineage.locked_outs(root):
        progress(out.path)
        found += _mend_cache(root, cache, out)  # before it is needed
        if believed.get(out.path) == out.md5:
            found += _mend(root, cache, out)
    return found


def looked_at(root: Path) -> tuple[list[lineage.Out], dict[str, str]]:
    """The results that `mend_all` has read; and by path those that it has not, and why: it is for DVC to say what
    becomes of them."""
    believed, stages = lineage.believed(root), {node.name for node in lineage.graph(root)}
    outs = [out for out in lineage.locked_outs(root) if out.stage in stages]  # dvc.lock keeps those that are no more
    return [out for out in outs if believed.get(out.path) == out.md5], {
        out.path: "was changed since its stage wrote it" if out.path in believed else "is not here"
        for out in outs
        if believed.get(out.path) != out.md5
    }


def _mend(root: Path, cache: Path, out: lineage.Out) -> list[Damage]:
    whole = root / out.path
    if not out.md5.endswith(".dir"):
        return [] if _md5(whole) == out.md5 else [_bring_back(root, cache, out, whole, out.md5)]
    listing = _listing(cache, out.md5)
    now = _md5s(root, whole)
    if listing is None:  # DVC's cache has been emptied: all that can be said is whether the whole is right
        return [] if _digest(now) == out.md5 else [_remove(root, out, whole)]
    wrong = [(whole / name, md5) for name, md5 in listing.items() if now.get(name) != md5]
    return [_bring_back(root, cache, out, path, md5) for path, md5 in wrong]


def _mend_cache(root: Path, cache: Path, out: lineage.Out) -> list[Damage]:
    found = []
    listing = {"": out.md5}
    if out.md5.endswith(".dir"):
        manifest = _object(cache, out.md5)
        if not manifest.exists():
            return []
        if (read := _listing(cache, out.md5)) is None:  # DVC writes it again from what lies here
            return [_remove(root, out, manifest)]
        listing = read
    for name, md5 in listing.items():
        copy = _object(cache, md5)
        if not copy.exists() or _md5(copy) == md5:
            continue
        original = root / out.path / name
        if _md5(original) == md5:
            _put(copy, original.read_bytes(), mode=0o444)
            found.append(Damage(_shown(root, copy), out.stage, _shown(root, original)))
        else:
            found.append(_remove(root, out, copy))
    return found


def _bring_back(root: Path, cache: Path, out: lineage.Out, path: Path, md5: str) -> Damage:
    for source, content in _copies(root, cache, path, md5):
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            _put(path, content)
            return Damage(_shown(root, path), out.stage, source)
    _object(cache, md5).unlink(missing_ok=True)  # where there was one, it is no better
    return _remove(root, out, path)


def _copies(root: Path, cache: Path, path: Path, md5: str) -> Iterator[tuple[str, bytes]]:
    if (cached := _object(cache, md5)).is_file():
        yield "DVC's cache", cached.read_bytes()
    name = path.relative_to(root).as_posix()
    shown = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=root, capture_output=True, check=False)
    if shown.returncode == 0:
        yield "the last commit", shown.stdout


def _remove(root: Path, out: lineage.Out, path: Path) -> Damage:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return Damage(_shown(root, path), out.stage, None)


def _put(path: Path, content: bytes, mode: int | None = None) -> None:
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # stages run side by side
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if mode is not None:
        partial.chmod(mode)
    os.replace(partial, path)


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _cache(root: Path) -> Path:
    return lineage.cache_folder(root) / "files" / "md5"


def _listing(cache: Path, md5: str) -> dict[str, str] | None:
    """{name: MD5} of a folder, from DVC's cache; None where that has none, or a damaged one."""
    try:
        text = _object(cache, md5).read_bytes()
    except OSError:
        return None
    if hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir" != md5:
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(text)}


def _digest(md5s: Mapping[str, str]) -> str:
    """What DVC calls a folder with these files."""
    text = json.dumps([{"md5": md5, "relpath": name} for name, md5 in sorted(md5s.items())], sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5s(root: Path, folder: Path) -> dict[str, str]:
    files = lineage.files_in(root, folder)
    with ThreadPoolExecutor() as pool:  # hashing does not hold Python's lock
        md5s = list(pool.map(_md5, files))
    return {file.relative_to(folder).as_posix(): md5 for file, md5 in zip(files, md5s, strict=True)}


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return ""
