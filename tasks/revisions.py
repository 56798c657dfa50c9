"""What a commit's dvc.lock names, without a checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import yaml

from tasks import lineage, lockfile, remote
from thinner.errors import UserError, one_line


def files_at(root: Path, revision: str, out: str, names: Collection[str], to: Path) -> dict[str, str]:
    """Copy the files ``names`` of the folder ``out``, as the commit's dvc.lock has it, into the folder ``to``. Where
    DVC's cache lacks them, only they are fetched.

    Returns {name: MD5} of all files of ``out``.

    Raises:
        UserError: there is no such commit, its dvc.lock has no such folder, or a file is neither in DVC's cache nor at
            the remote.
    """
    md5 = _locked(root, revision, out)
    listing_path = _have(root, revision, out, [md5])[0]
    listing = {entry["relpath"]: entry["md5"] for entry in json.loads(listing_path.read_bytes())}
    if lacking := sorted(set(names) - listing.keys()):
        raise UserError(f"{revision}: {out} has no {lacking[0]}: an older version made it")
    chosen = sorted(names)
    for name, path in zip(chosen, _have(root, revision, out, [listing[name] for name in chosen]), strict=True):
        shutil.copyfile(path, to / name)
    return listing


def _locked(root: Path, revision: str, out: str) -> str:
    if revision.startswith("-"):
        raise UserError(f"'{one_line(revision)}' is no commit, tag or branch")
    done = subprocess.run(
        ["git", "show", f"{revision}:./{lockfile.LOCK}"], cwd=root, text=True, capture_output=True, check=False
    )
    if done.returncode:
        exists = "exists on disk" in done.stderr or "does not exist in" in done.stderr
        what = "has no dvc.lock" if exists else f"is no commit, tag or branch ({one_line(done.stderr, 80)})"
        raise UserError(f"{one_line(revision, 60)} {what}. The commits that have one: git log --oneline -- dvc.lock")
    stages = (yaml.load(done.stdout, Loader=lockfile.LOADER) or {}).get("stages") or {}  # noqa: S506 - a safe one
    for entry in stages.values():
        for one in entry.get("outs", []):
            if one["path"] == out:
                return str(one["md5"])
    raise UserError(f"{one_line(revision, 60)}: its dvc.lock has no {out}")


def _have(root: Path, revision: str, out: str, md5s: list[str]) -> list[Path]:
    """Where these objects lie in DVC's cache, once the missing ones have come from the remote."""
    cache = lineage.cache_folder(root) / "files" / "md5"
    paths = [cache / md5[:2] / md5[2:] for md5 in md5s]
    missing = [md5 for md5, path in zip(md5s, paths, strict=True) if not path.exists()]
    if missing and remote.configured(root) is not None:
        remote.run(root, remote.command("objects", *missing), lambda line: None)
    if not all(path.exists() for path in paths):
        raise UserError(
            f"{one_line(revision, 60)}: {out} is neither in DVC's cache here nor at a remote. It was deleted, or lies "
            "in the clone that made it: thinner push --all there"
        )
    return paths
