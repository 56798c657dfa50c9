"""tasks/remote.py and `thinner remote`, between real clones of a small DVC repository whose stages are shell commands."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli
from tasks import remote
from tests.servers import PATIENCE
from tests.toy import PROJECT
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie

SECRET = "aVerySecretWord12"  # noqa: S105 - of nobody
GRAPH = {
    "stages": {
        "first": {
            "cmd": "echo first >> ran.txt; mkdir -p one && cat raw > one/x && grep seed: params.yaml >> one/x"
            " && grep -c . one/x > numbers.json && grep seed: params.yaml >> numbers.json",
            "deps": ["raw"],
            "params": ["run.seed"],
            "outs": ["one"],
            "metrics": [{"numbers.json": {"cache": False}}],
        },
        "second": {"cmd": "echo second >> ran.txt; cat one/x one/x > two", "deps": ["one"], "outs": ["two"]},
    }
}


def sh(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(root.parent / f"site-{root.name}"),
    }
    done = subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def dvc(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return sh(root, sys.executable, "-m", "dvc", *command)


def travel(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return sh(root, *remote.command(*command), check=check)


def ran(root: Path) -> list[str]:
    """The stages that really ran since the last time this was asked."""
    path = root / "ran.txt"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def set_seed(root: Path, seed: int) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text("\n".join(f"  seed: {seed}" if "  seed:" in s else s for s in text.splitlines()))


def clone(made: Path, to: Path) -> Path:
    sh(made.parent, "git", "clone", "--quiet", str(made), str(to))
    return to


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything is up to date and committed; the remote, a folder beside it, is named in .dvc/config and empty."""
    root = tmp_path_factory.mktemp("remote") / "made"
    root.mkdir()
    (root / "raw").write_text("raw\n")
    (root / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    (root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    (root / ".gitignore").write_text("ran.txt\n.thinner/\n.partial-*\n")
    sh(root, "git", "init", "--quiet", "--initial-branch=main")
    sh(root, "git", "config", "user.email", "made@example.org")
    sh(root, "git", "config", "user.name", "Made")
    dvc(root, "init", "--quiet")
    dvc(root, "repro", "--quiet")
    assert ran(root) == ["first", "second"]
    return root


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    root = shutil.copytree(original, tmp_path / "made", symlinks=True)
    remote.write(root, str(tmp_path / "store"), {}, local=False, replace=False)
    sh(root, "git", "add", "--all")
    sh(root, "git", "commit", "--quiet", "--message", "made")
    return root


# ------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://team/thinner/", "s3://team/thinner"),
        ("s3://team", "s3://team"),
        ("gs://team/a", "gs://team/a"),
        ("ssh://joe@host:2222/srv/thinner", "ssh://joe@host:2222/srv/thinner"),
        ("ssh://host/srv", "ssh://host/srv"),
    ],
)
def test_addresses_are_kept_as_dvc_takes_them(text: str, kept: str, tmp_path: Path) -> None:
    assert remote.parse(text, tmp_path) == kept


@pytest.mark.parametrize(
    "text",
    [
        f"s3://joe:{SECRET}@team/x",
        f"s3://AKIAABCDEFGHIJKLMNOP:{SECRET}/x@team/y",  # a secret key may hold a slash
        f"s3://team/x?X-Amz-Signature={SECRET}",
        f"s3://team/x#{SECRET}",
        f"s3://{SECRET}@team/x",
        "s3://team/AKIAABCDEFGHIJKLMNOP",
        f"gs://joe:{SECRET}@team/x",
        f"ssh://joe:{SECRET}@host/srv",
        f"ssh://joe:{SECRET}@@host/srv",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"seems to hold a password or a key.*Nothing is written.*credentials come"
    ) as e:
        remote.parse(text, tmp_path)
    assert SECRET not in str(e.value) and "AKIA" not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", r"^remote: unknown scheme 'ftp'\. Choose one of: s3://BUCKET/FOLDER, gs://"),
        ("sss://host/x", r"^remote: unknown scheme 'sss'\. Did you mean '.*'\? Choose one of: s3://"),
        ("s3://", r"^remote: 's3://' names no bucket$"),
        ("s3:///x", r"names no bucket$"),
        ("ssh://host", r"^remote: 'ssh://host' names no folder\. For example: ssh://host/srv/thinner$"),
        ("team/x", r"^remote: 'team/x' is no address\. Give s3://BUCKET/FOLDER"),
        ("/nowhere/at/all", r"^remote: there is no folder /nowhere/at\. Is its disk mounted\? Else: mkdir -p /nowhere"),
    ],
)
def test_an_address_that_is_none_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        remote.parse(text, tmp_path)


def test_a_folder_is_absolute_and_outside_of_the_working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    assert remote.parse("../store", tmp_path / "copy") == str(tmp_path / "store")
    with pytest.raises(UserError, match=r"lies in this working copy, and would go with it\. Choose a folder outside$"):
        remote.parse("./store", tmp_path / "copy")


@pytest.mark.parametrize("url", [f"http://joe:{SECRET}@h:1", f"http://h/?key={SECRET}", f"ftp://joe:{SECRET}@h", "h:9"])
def test_an_endpoint_is_a_plain_address(url: str) -> None:
    with pytest.raises(UserError, match=r"^--endpoint: ") as e:
        remote.check_endpoint(url)
    assert SECRET not in str(e.value)
    remote.check_endpoint("http://127.0.0.1:9000")


# ------------------------------------------------------------------------------- what is set up


@pytest.mark.integration
def test_a_secret_in_the_file_that_git_keeps_is_refused_and_one_beside_it_is_not(made: Path) -> None:
    dvc(made, "remote", "add", "--quiet", "cloud", "s3://team/x")
    dvc(made, "remote", "modify", "--local", "cloud", "secret_access_key", SECRET)
    assert remote.configured(made) == remote.Remote("results", str(made.parent / "store"))
    dvc(made, "remote", "modify", "cloud", "secret_access_key", SECRET)
    with pytest.raises(UserError, match=r"^\.dvc/config: remote 'cloud' holds secret_access_key, and git keeps") as e:
        remote.configured(made)
    assert SECRET not in str(e.value)
    dvc(made, "remote", "add", "--quiet", "--force", "cloud", f"s3://joe:{SECRET}@team/x")
    with pytest.raises(
        UserError, match=r"^\.dvc/config: remote 'cloud' holds url, and .* \(dvc remote modify cloud url ADDRESS\)"
    ) as e:
        remote.configured(made)
    assert SECRET not in str(e.value)
    dvc(made, "remote", "remove", "--local", "cloud")
    dvc(made, "remote", "remove", "cloud")
    dvc(made, "remote", "add", "--quiet", "--local", "--default", "mine", f"webdavs://joe:{SECRET}@host/x")
    with pytest.raises(UserError, match=r"^\.dvc/config\.local: the url of 'mine' seems to hold a password") as e:
        remote.configured(made)
    assert SECRET not in str(e.value)


def test_a_plugin_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^s3://: dvc-s3 is not installed\. Install it: pip install -e '\.\[s3\]'$"):
        remote.check_installed("s3://team/x")
    remote.check_installed("/a/folder")


def test_every_plugin_is_an_extra() -> None:
    import tomllib

    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for scheme, module in remote.EXTRAS.items():
        assert any(line.startswith(module.replace("_", "-")) for line in extras[scheme])


def test_travelling_is_off_until_this_clone_says_otherwise(made: Path) -> None:
    assert remote.travel(made) == remote.Travel(pull=False, push=False)
    assert f"{made.parent / 'store'} may have it: thinner pull" in str(remote.hint(made))
    sh(made, "git", "config", "thinner.pull", "yes")
    assert remote.travel(made) == remote.Travel(pull=True, push=False)
    sh(made, "git", "config", "thinner.pull", "false")
    assert remote.travel(made) == remote.Travel(pull=False, push=False) and remote.hint(made) is None
    sh(made, "git", "config", "thinner.pull", "perhaps")
    with pytest.raises(
        UserError, match=r"^git config thinner\.pull: .*perhaps.* Set it: git config thinner\.pull true$"
    ):
        remote.travel(made)
    sh(made, "git", "config", "thinner.pull", "true")
    dvc(made, "remote", "remove", "results")
    with pytest.raises(
        UserError, match=r"^no remote is set up, so nothing can travel\. Set one up: thinner remote init"
    ):
        remote.travel(made)


@pytest.fixture
def thinner(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))

    def call(root: Path, *words: str) -> tuple[int, str]:
        monkeypatch.chdir(root)
        done = CliRunner().invoke(cli.app, list(words))
        return done.exit_code, " ".join(done.output.split())

    return call


def test_init_tries_the_place_and_leaves_nothing_there(original: Path, tmp_path: Path, thinner) -> None:
    root = shutil.copytree(original, tmp_path / "made", symlinks=True)
    code, said = thinner(root, "remote", "init", "../store", "--each-run")
    assert code == 0 and f"{tmp_path / 'store'} answers, and .dvc/config names it" in said
    assert list((tmp_path / "store").iterdir()) == []
    assert remote.travel(root) == remote.Travel(pull=True, push=True)
    assert thinner(root, "remote", "init", "../store")[0] == 0  # again: nothing is wrong with that
    code, said = thinner(root, "remote", "init", "../other")
    assert code == 1 and "DVC's default remote is 'results' already" in said and "--replace" in said
    assert not (tmp_path / "other").exists()
    assert thinner(root, "remote", "init", "../other", "--replace", "--local")[0] == 0
    configured = remote.configured(root)
    assert configured is not None and configured.url == str(tmp_path / "other")
    assert "store" in (root / ".dvc/config").read_text() and "other" in (root / ".dvc/config.local").read_text()
    code, said = thinner(root, "remote", "show")
    assert code == 0 and "asked for each result" in said and "what it made is sent" in said


def test_init_where_no_folder_can_be_made_writes_nothing(original: Path, tmp_path: Path, thinner) -> None:
    root = shutil.copytree(original, tmp_path / "made", symlinks=True)
    (tmp_path / "store").write_text("a file")
    code, said = thinner(root, "remote", "init", "../store")
    assert code == 1 and said.startswith(str(tmp_path / "store")) and "Traceback" not in said
    assert remote.configured(root) is None


# ------------------------------------------------------------------------------- there and back


@pytest.mark.integration
def test_a_clone_restores_the_committed_results_and_runs_nothing(made: Path, thinner) -> None:
    travel(made, "push")
    other = clone(made, made.parent / "other")
    assert thinner(other, "pull") == (0, "restored: first, second")
    assert ran(other) == [] and (other / "two").read_bytes() == (made / "two").read_bytes()
    assert "up to date" in dvc(other, "status").stdout
    assert thinner(other, "pull") == (0, "Every stage is up to date: nothing to bring")


@pytest.mark.integration
def test_what_somebody_made_with_other_params_comes_with_its_numbers_which_dvc_alone_leaves_behind(made: Path) -> None:
    travel(made, "push")
    other, third = clone(made, made.parent / "other"), clone(made, made.parent / "third")
    plain = shutil.copytree(made, made.parent / "plain", symlinks=True)
    set_seed(other, 5)
    dvc(other, "repro", "--quiet")
    assert ran(other) == ["first", "second"]
    # why this module exists: what DVC itself sends lacks numbers.json, so DVC runs the stage again
    dvc(other, "remote", "modify", "results", "url", str(made.parent / "plain-store"))
    dvc(other, "push", "--quiet", "--run-cache")
    dvc(plain, "remote", "modify", "results", "url", str(made.parent / "plain-store"))
    set_seed(plain, 5)
    sh(plain, sys.executable, "-m", "dvc", "repro", "--quiet", "--pull", "first")
    assert ran(plain) == ["first"]
    sh(other, "git", "checkout", "--quiet", ".dvc/config")
    travel(other, "push")
    set_seed(third, 5)
    for stage in ("first", "second"):
        travel(third, "repro", stage)
    assert ran(third) == []
    for name in ("one/x", "two", "numbers.json"):
        assert (third / name).read_bytes() == (other / name).read_bytes() != (made / name).read_bytes()


@pytest.mark.integration
def test_push_sends_only_what_is_new_and_all_of_the_cache_if_asked(made: Path, thinner) -> None:
    set_seed(made, 5)
    dvc(made, "repro", "--quiet")
    set_seed(made, 6)
    dvc(made, "repro", "--quiet")
    code, said = thinner(made, "push")
    # two entries; a folder's listing and its file; two; numbers
    assert code == 0 and "has 2 results of 2 stages; 6 of their files were new there" in said
    assert "has 2 results of 2 stages; 0 of their files were new there" in thinner(made, "push")[1]
    assert "has 6 results of 2 stages; 12 of their files were new there" in thinner(made, "push", "--all")[1]


@pytest.mark.integration
def test_what_dvc_add_keeps_travels_as_well(made: Path, thinner) -> None:
    sh(made, "git", "rm", "--quiet", "--cached", "raw")
    dvc(made, "add", "--quiet", "raw")
    sh(made, "git", "add", "--all")
    sh(made, "git", "commit", "--quiet", "--message", "raw is DVC's")
    travel(made, "push")
    other = clone(made, made.parent / "other")
    assert remote.missing_data(other) == ["raw"]
    code, said = thinner(other, "pull")
    assert code == 0 and said == f"raw: came from {made.parent / 'store'} restored: first, second"
    assert (other / "raw").read_text() == "raw\n" and ran(other) == []
    # what lies here in another version is used as it is, and that is said: it may be an edit, or what a pull left
    assert remote.other_data(other) == []
    (other / "raw").unlink()
    (other / "raw").write_text("older\n")
    assert remote.missing_data(other) == [] and remote.other_data(other) == ["raw"]
    code, said = thinner(other, "pull")
    assert code == 0 and "note: raw is not what raw.dvc names, and this takes it as it lies here" in said
    assert (other / "raw").read_text() == "older\n"


def _objects(store: Path) -> Iterator[Path]:
    return (path for path in (store / "files").rglob("*") if path.is_file())


@pytest.mark.integration
@pytest.mark.parametrize("harm", ["gone", "a flipped bit", "the entry is cut off", "the entry is another stage's"])
def test_what_is_not_whole_there_is_not_used_and_the_stage_runs(made: Path, thinner, harm: str) -> None:
    set_seed(made, 5)
    dvc(made, "repro", "--quiet")
    travel(made, "push")
    store = made.parent / "store"
    (numbers,) = (path for path in _objects(store) if path.read_bytes() == (made / "numbers.json").read_bytes())
    runs = [path for path in (store / "runs").rglob("*") if path.is_file()]
    numbers.chmod(0o644)
    if harm == "gone":
        numbers.unlink()
    elif harm == "a flipped bit":
        content = numbers.read_bytes()
        numbers.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "the entry is cut off":
        for path in runs:
            path.write_bytes(path.read_bytes()[:-9])
    else:
        first, second = (path.read_bytes() for path in runs)
        runs[0].write_bytes(second)
        runs[1].write_bytes(first)
    other = clone(made, made.parent / "other")
    set_seed(other, 5)
    code, said = thinner(other, "pull")
    assert code == 0 and "not there: first, second Next thinner run" in said
    travel(other, "repro", "first")
    assert ran(other) == ["first"] and (other / "numbers.json").read_bytes() == (made / "numbers.json").read_bytes()


def test_a_training_that_was_cut_off_goes_on_elsewhere_from_its_last_state_that_was_sent(made: Path) -> None:
    there, store = clone(made, made.parent / "there"), made.parent / "store" / "states"
    name, here = "second-0123456789abcdef", made / remote.RESUME / "second-0123456789abcdef"
    (here / "probe").mkdir(parents=True)
    (here / "probe" / "state.bin").write_bytes(b"step 7")
    (here / ".partial-state.bin").write_bytes(b"half")
    remote.send_states(made, name, lambda: True)  # the process that trains has ended, and has not finished
    assert [path.name for path in store.iterdir()] == [f"{name}.tar"]

    with remote._repo(there) as repo:
        text = remote._read_state(repo, name)
        assert text is not None and remote._read_state(repo, "second-of-others") is None
    remote._unpack(text, there / remote.RESUME / name)
    files = [path for path in (there / remote.RESUME).rglob("*") if path.is_file()]
    assert {path.relative_to(there / remote.RESUME / name).as_posix(): path.read_bytes() for path in files} == {
        "probe/state.bin": b"step 7"
    }
    remote._unpack(text[:600], there / remote.RESUME / "cut")  # what is cut off is none
    assert [path.name for path in (there / remote.RESUME).iterdir()] == [name]

    shutil.rmtree(there / remote.RESUME / name)  # done
    remote.send_states(there, name, lambda: True)
    assert list(store.iterdir()) == []


def test_each_new_state_is_sent_and_the_same_one_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_STATE_SECONDS", 0.0)
    state, looks, sent = made / remote.RESUME / "second-1" / "state", [], []
    state.parent.mkdir(parents=True)
    pack = remote._pack
    monkeypatch.setattr(remote, "_pack", lambda folder: sent.append(state.read_text()) or pack(folder))

    def over() -> bool:
        looks.append(1)
        if len(looks) in (2, 5):
            state.write_text(f"state {len(looks)}")
            os.utime(state, ns=(len(looks), len(looks)))
        return len(looks) == 8

    remote.send_states(made, "second-1", over)
    assert sent == ["state 2", "state 5"]


def test_a_folder_that_is_gone_has_no_results_and_takes_none(made: Path) -> None:
    (made.parent / "store").write_text("no folder")
    other = clone(made, made.parent / "other")
    assert travel(other, "restore", "first", check=False).returncode == remote.NOT_THERE
    done = travel(made, "push", check=False)
    assert done.returncode == 1 and done.stderr.startswith(str(made.parent / "store")) and done.stderr.count("\n") == 1


def test_a_stage_that_fails_fails_here_as_well(made: Path) -> None:
    (made / "raw").unlink()
    done = travel(made, "repro", "first", check=False)
    assert done.returncode != 0 and "raw" in done.stderr


# ------------------------------------------------------------------------------- what a store's library says


def _raised(name: str, text: str, cause: Exception | None = None) -> Exception:
    error = type(name, (Exception,), {})(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_raised("NoCredentialsError", "Unable to locate credentials"), "no credentials were found. They come by AWS_"),
        (
            _raised("ProfileNotFound", "The config profile (x) could not be found"),
            "profile (x) could not be found. Its",
        ),
        (OSError("wrapped"), "s3://team/x: OSError: wrapped"),
        (
            _raised("UploadError", "1 file failed", PermissionError("Forbidden")),
            "refused (Forbidden). Other credentials",
        ),
        (
            OSError("The AWS Access Key Id you provided does not exist in our records."),
            "refused (The AWS Access Key Id",
        ),
        (_raised("HttpError", "Anonymous caller does not have access, 401"), "no credentials were found. They come"),
        (
            OSError("Forbidden: https://host/b/team\njoe has no access"),
            "refused (Forbidden: https://host/b/team joe has",
        ),
        (FileNotFoundError("The specified bucket does not exist"), "there is no such bucket. Make it first"),
        (
            _raised("EndpointConnectionError", "Could not connect"),
            "does not answer (Could not connect). Is the address",
        ),
    ],
)
def test_what_went_wrong_is_one_line_with_the_mend(error: Exception, said: str) -> None:
    text = remote.explain(error, "s3://team/x")
    assert said in text and text.startswith("s3://team/x: ") and "\n" not in text


def test_a_librarys_message_does_not_carry_a_secret_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = remote.explain(ValueError(f"bad key AKIAABCDEFGHIJKLMNOP with {SECRET}"), "s3://team/x")
    assert SECRET not in text and "AKIA" not in text and "bad key *** with ***" in text


def test_a_server_that_takes_the_call_and_never_answers_is_given_up(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dvc_s3")
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 2.0)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        options = {"url": "s3://team/x", "endpointurl": f"http://127.0.0.1:{deaf.getsockname()[1]}"}

        def run(command: list[str], *, timeout: float, capture_output: bool, check: bool, **how: Any) -> Any:
            """The seconds count from the call: Python and DVC may take as long to start as they want."""
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdout=pipe, stderr=pipe, **how) as process:
                try:
                    deaf.settimeout(PATIENCE)
                    with deaf.accept()[0]:  # it was called
                        process.communicate(timeout=timeout)
                finally:
                    process.kill()

        monkeypatch.setattr(remote.subprocess, "run", run)
        with pytest.raises(UserError, match=r"^s3://team/x: did not answer within 2 seconds\. Is the address right\?"):
            remote.probe(made, options, writing=True)
