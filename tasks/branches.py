"""Results on a branch of their own: committed by git's plumbing with an index of its own, so that neither the branch
that is checked out, nor its index, nor a file of the working copy changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.git import ask, git
from thinner.errors import UserError, one_line

NOBODY = {"NAME": "Thinner", "EMAIL": "thinner@localhost"}  # where git does not know who commits
_NEW = "0" * 40


def commit_of(root: Path, ref: str) -> str:
    """The commit that ``ref`` names: a branch, a tag, a hash. `origin/main` is fetched first.

    Raises:
        UserError: there is none, or its remote does not answer.
    """
    if away := _of_remote(root, ref):
        remote, name = away  # a clone of a single branch would not keep another under its name
        kept = f"+refs/heads/{name}:refs/remotes/{remote}/{name}"
        git(root, "fetch", "--quiet", "--no-tags", "--end-of-options", remote, kept)
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except UserError:
        raise UserError(
            f"ref: '{one_line(ref, 60)}' names no commit. Give a branch, a tag, or REMOTE/BRANCH, such as origin/main"
        ) from None


def file_of(root: Path, commit: str, name: str) -> str:
    """What the file holds in ``commit``."""
    return git(root, "show", f"{commit}:{name}", strip=False)


def pointers_of(root: Path, commit: str) -> str:
    """Mode, hash and name of each .dvc file in ``commit``: they change with the data that `dvc add` keeps."""
    listed = git(root, "ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    return "\n".join(line for line in listed if line.endswith(".dvc"))


def _of_remote(root: Path, branch: str) -> tuple[str, str] | None:
    """(remote, branch there) of `origin/thinner/nightly`; None where no remote is called so."""
    remote, _, name = branch.partition("/")
    return (remote, name) if name and remote in git(root, "remote").split() else None


def check(root: Path, branch: str) -> None:
    """Raise UserError where results could not be committed to ``branch``, before anything runs."""
    words = f"commit_to: '{one_line(branch, 60)}'"
    away = _of_remote(root, branch)
    name = away[1] if away else branch
    if name.startswith("-") or ask(root, "check-ref-format", f"refs/heads/{name}").returncode:
        raise UserError(f"{words} is no name of a branch. For example: thinner/nightly")
    if away:
        return
    for line in git(root, "worktree", "list", "--porcelain").splitlines():
        if line == f"branch refs/heads/{branch}":
            raise UserError(f"{words} is checked out, and would change under whoever works there. Name another")
    names = git(root, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads").splitlines()
    if clash := next((n for n in names if n.startswith(f"{branch}/") or branch.startswith(f"{n}/")), None):
        raise UserError(f"{words} cannot be beside the branch '{clash}'. Name another, such as {clash}-nightly")


def commit(folder: Path, branch: str, message: str, names: Sequence[str]) -> str | None:
    """Put what ``names`` are in ``folder``, a working copy or worktree, upon its HEAD and on ``branch``; returns the
    commit, or None where the branch has all that already.

    Its parents are what the branch was and, where that does not come from it, HEAD. So the branch can be merged.
    A branch of a remote, such as origin/thinner/nightly, is fetched and pushed, and no branch here changes.
    """
    check(folder, branch)
    away, head = _of_remote(folder, branch), git(folder, "rev-parse", "HEAD")
    reference = f"refs/heads/{away[1] if away else branch}"
    before = _tip(folder, away, reference)
    with tempfile.TemporaryDirectory() as place:
        own = {"GIT_INDEX_FILE": f"{place}/index"}
        git(folder, "read-tree", head, env=own)
        tracked = git(folder, "ls-files", "--", *names, env=own).splitlines()
        there = [n for n in names if (folder / n).exists() or any(t == n or t.startswith(f"{n}/") for t in tracked)]
        git(folder, "add", "--all", "--", *there, env=own)
        tree = git(folder, "write-tree", env=own)
    parents = [before] if before else []
    if not before or ask(folder, "merge-base", "--is-ancestor", head, before).returncode:
        parents.append(head)
    if before:
        _check_only_results(folder, branch, before, head, names)
    if len(parents) == 1 and git(folder, "rev-parse", f"{parents[0]}^{{tree}}") == tree:
        return None
    of = [word for parent in parents for word in ("-p", parent)]
    made = git(folder, "commit-tree", tree, *of, "-m", message, env=_identity(folder))
    if away:
        git(folder, "push", "--quiet", "--no-verify", away[0], f"{made}:{reference}")
    else:
        git(folder, "update-ref", "-m", "thinner: results", reference, made, before or _NEW)
    return made


def _tip(folder: Path, away: tuple[str, str] | None, reference: str) -> str:
    """The commit that a branch is at, which is here then; nothing where there is none."""
    if away is None:
        return ask(folder, "rev-parse", "--verify", "--quiet", reference).stdout.strip()
    tip = git(folder, "ls-remote", away[0], reference).partition("\t")[0]
    if tip and git(folder, "rev-parse", "--is-shallow-repository") == "true":  # where the two parted is not in there
        git(folder, "fetch", "--quiet", "--no-tags", "--unshallow", away[0])
    if tip:
        git(folder, "fetch", "--quiet", "--no-tags", away[0], reference)
    return tip


def check_merge(root: Path, branch: str, head: str, names: Sequence[str]) -> None:
    """Raise UserError where results of the commit ``head`` could not be laid upon ``branch``, before anything runs."""
    away = _of_remote(root, branch)
    if before := _tip(root, away, f"refs/heads/{away[1] if away else branch}"):
        _check_only_results(root, branch, before, head, names)


def _check_only_results(folder: Path, branch: str, before: str, head: str, names: Sequence[str]) -> None:
    """Raise UserError where ``branch``, at ``before``, has other changes than results since it and ``head`` parted:
    upon it would be laid what ``head`` is, and whoever merges the branch would lose them without a word."""
    parted = ask(folder, "merge-base", before, head).stdout.strip()
    but = [f":(exclude,top){name}" for name in names]
    changed = git(folder, "diff", "--name-only", "-z", parted, before, "--", ":/", *but) if parted else ""
    paths = [f":(top,literal){path}" for path in changed.split("\0") if path]
    if not parted or (paths and ask(folder, "diff", "--quiet", before, head, "--", *paths).returncode):
        raise UserError(
            f"commit_to: '{one_line(branch, 60)}' has changes that {head[:12]} does not build upon, and merging it "
            "would take them back. Run a commit that has them, or name another branch"
        )


def _identity(folder: Path) -> dict[str, str]:
    known = {who: ask(folder, "var", f"GIT_{who}_IDENT").returncode == 0 for who in ("AUTHOR", "COMMITTER")}
    return {f"GIT_{who}_{key}": value for who in known if not known[who] for key, value in NOBODY.items()}
