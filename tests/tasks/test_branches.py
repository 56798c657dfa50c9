"""tasks/branches.py: results on a branch, and nothing else moved."""

import subprocess
from pathlib import Path

import pytest

from tasks import branches
from thinner.errors import UserError

NAMES = ("params.yaml", "dvc.lock", "reports")


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, text=True, capture_output=True, check=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "ann@example.org")
    root = tmp_path / "job"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    (root / "reports").mkdir()
    for name, text in (("params.yaml", "a: 1"), ("code.py", "1"), ("reports/old.md", "old"), (".gitignore", "*.html")):
        (root / name).write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "start")
    return root


def test_results_are_on_the_branch_and_head_index_and_files_are_as_they_were(root: Path) -> None:
    (root / "code.py").write_text("2, staged")
    git(root, "add", "code.py")
    (root / "code.py").write_text("3, not staged")
    (root / "dvc.lock").write_text("made")
    (root / "reports/old.md").unlink()
    (root / "reports/report.html").write_text("ignored by git")
    (root / "reports/new.md").write_text("new")
    before = git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD"), (root / ".git/index").read_bytes()

    made = branches.commit(root, "thinner/nightly", "a night", NAMES)

    assert made == git(root, "rev-parse", "thinner/nightly")
    after = git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD"), (root / ".git/index").read_bytes()
    assert after == before
    assert git(root, "ls-tree", "-r", "--name-only", made).split() == [
        ".gitignore", "code.py", "dvc.lock", "params.yaml", "reports/new.md"
    ]  # fmt: skip
    assert git(root, "show", f"{made}:code.py") == "1"  # what ran, not what lies here
    assert git(root, "log", "-1", "--format=%s|%an|%P", made) == f"a night|Ann|{before[1]}"
    assert branches.commit(root, "thinner/nightly", "the same night", NAMES) is None


def test_later_results_come_upon_earlier_ones_and_upon_the_commit_that_made_them(root: Path) -> None:
    (root / "dvc.lock").write_text("first")
    first = branches.commit(root, "nights", "first", NAMES)
    git(root, "commit", "--quiet", "--allow-empty", "-m", "more code")
    (root / "dvc.lock").write_text("second")
    second = branches.commit(root, "nights", "second", NAMES)
    assert git(root, "log", "-1", "--format=%P", "nights") == f"{first} {git(root, 'rev-parse', 'main')}"
    (root / "dvc.lock").write_text("third")
    branches.commit(root, "nights", "third", NAMES)
    assert git(root, "log", "-1", "--format=%P", "nights") == second
    git(root, "checkout", "--quiet", "--force", "main")
    (root / "dvc.lock").unlink()
    git(root, "merge", "--quiet", "nights")
    assert (root / "dvc.lock").read_text() == "third"


def test_the_results_of_an_older_commit_do_not_take_back_what_came_since(root: Path) -> None:
    start = git(root, "rev-parse", "HEAD")
    (root / "code.py").write_text("2")
    git(root, "commit", "--quiet", "--all", "-m", "newer code")
    (root / "dvc.lock").write_text("of the newer")
    kept = branches.commit(root, "nights", "a night", NAMES)
    (root / "dvc.lock").unlink()
    git(root, "checkout", "--quiet", "--detach", start)
    (root / "dvc.lock").write_text("of the older")
    with pytest.raises(UserError, match=f"commit_to: 'nights' has changes that {start[:12]} does not build upon"):
        branches.commit(root, "nights", "another night", NAMES)
    git(root, "commit", "--quiet", "--allow-empty", "-m", "on a branch of its own")
    with pytest.raises(UserError, match="commit_to: 'nights' has changes"):
        branches.check_merge(root, "nights", git(root, "rev-parse", "HEAD"), NAMES)
    assert git(root, "rev-parse", "nights") == kept
    # the same code by another commit, as after an amend or a squash
    (root / "code.py").write_text("2")
    git(root, "commit", "--quiet", "--all", "-m", "the newer code once more")
    assert branches.commit(root, "nights", "a night of that", NAMES) is not None


def test_where_git_does_not_know_who_commits_it_is_thinner(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{who}_NAME")
        monkeypatch.delenv(f"GIT_{who}_EMAIL")
    git(root, "config", "user.useConfigOnly", "true")
    (root / "dvc.lock").write_text("made")
    assert branches.commit(root, "nights", "a night", NAMES)
    assert git(root, "log", "-1", "--format=%an %ce", "nights") == "Thinner thinner@localhost"


def test_a_branch_of_a_remote_is_pushed_and_no_branch_here_changes(root: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(root), "store.git")
    clones = [tmp_path / "one", tmp_path / "two"]
    for number, clone in enumerate(clones):
        git(tmp_path, "clone", "--quiet", "store.git", str(clone))
        (clone / "dvc.lock").write_text(f"made in {number}")
        before = git(clone, "for-each-ref", "refs/heads")
        made = branches.commit(clone, "origin/thinner/nightly", "a night", NAMES)
        assert git(tmp_path / "store.git", "rev-parse", "thinner/nightly") == made
        assert git(clone, "for-each-ref", "refs/heads") == before
        assert branches.commit(clone, "origin/thinner/nightly", "again", NAMES) is None
    assert git(tmp_path / "store.git", "log", "--format=%s", "thinner/nightly").split("\n") == [
        "a night",
        "a night",
        "start",
    ]
    (tmp_path / "store.git").rename(tmp_path / "gone.git")
    with pytest.raises(UserError, match=r"^git ls-remote: .*store\.git"):
        branches.commit(clones[0], "origin/thinner/nightly", "a night", NAMES)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("main", r"^commit_to: 'main' is checked out, and would change under whoever works there\. Name another$"),
        ("a b", r"^commit_to: 'a b' is no name of a branch\. For example: thinner/nightly$"),
        ("--force", r"^commit_to: '--force' is no name of a branch"),
        ("", r"^commit_to: '' is no name of a branch"),
        ("taken/nightly", r"^commit_to: 'taken/nightly' cannot be beside the branch 'taken'\. Name another, such as"),
    ],
)
def test_a_branch_that_cannot_be_is_refused(root: Path, name: str, line: str) -> None:
    git(root, "branch", "taken")
    with pytest.raises(UserError, match=line):
        branches.check(root, name)
    with pytest.raises(UserError, match=line):
        branches.commit(root, name, "a night", NAMES)


def test_a_branch_of_another_worktree_is_refused(root: Path, tmp_path: Path) -> None:
    git(root, "worktree", "add", "--quiet", "-b", "nights", str(tmp_path / "other"))
    with pytest.raises(UserError, match="'nights' is checked out"):
        branches.check(root, "nights")


def test_a_commit_is_found_by_name_and_a_remotes_is_fetched(root: Path, tmp_path: Path) -> None:
    here = git(root, "rev-parse", "HEAD")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(root), str(clone))
    assert branches.commit_of(clone, "main") == branches.commit_of(clone, here[:10]) == here
    (root / "raw.dvc").write_text("md5")
    (root / "Bäume.dvc").write_text("md5")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "data")
    new = git(root, "rev-parse", "HEAD")
    assert branches.commit_of(clone, "origin/main") == new
    assert git(clone, "rev-parse", "main") == here  # what is checked out stays
    assert branches.file_of(clone, new, "params.yaml") == "a: 1"
    assert branches.pointers_of(clone, here) == "" and [
        line.split("\t")[1] for line in branches.pointers_of(clone, new).splitlines()
    ] == ["B\u00e4ume.dvc", "raw.dvc"]


def test_a_clone_of_a_single_branch_finds_the_others_of_its_remote(root: Path, tmp_path: Path) -> None:
    git(root, "branch", "other")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--single-branch", "--branch=main", str(root), str(clone))
    assert branches.commit_of(clone, "origin/other") == git(root, "rev-parse", "other")


def test_a_password_is_not_shown_where_what_git_says_is_cut_off(root: Path) -> None:
    with pytest.raises(UserError, match=r"^git add: fatal: pathspec 'x{130} http://\*\*\*@") as refused:
        branches.git(root, "add", "--", f"{'x' * 130} http://me:{'hidden' * 20}@127.0.0.1/x.git")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("ref", ["nosuch", "", "--all", "origin/nosuch", "HEAD:params.yaml"])
def test_what_names_no_commit_is_refused(root: Path, ref: str) -> None:
    with pytest.raises(UserError, match=r"^ref: '.*' names no commit\. Give a branch, a tag, or REMOTE/BRANCH"):
        branches.commit_of(root, ref)


def test_a_remote_that_does_not_answer_is_one_line_without_its_password(root: Path) -> None:
    git(root, "remote", "add", "origin", "http://me:hidden@127.0.0.1:9/x.git")
    with pytest.raises(UserError, match=r"^git fetch: .*127\.0\.0\.1") as refused:
        branches.commit_of(root, "origin/main")
    assert "hidden" not in str(refused.value) and "\n" not in str(refused.value)
