"""Results that travel: what goes to DVC's default remote and what comes back from there, a stage at a time.

Three things make a stage `Restored` elsewhere: its entry in DVC's run cache, the files that it wrote and DVC keeps, and
its numbers, `cache: false` in dvc.yaml. `dvc push --run-cache` leaves out the third, because git has them; but git has
those of the commit only, and DVC trains again where one of a result's files is nowhere. So all three are sent and
fetched here, with DVC's own objects and transfers. What a stage fetches is found by the hash of its inputs, so nobody
has to list the remote. `dvc push` and `dvc pull` understand what lies there.

    python -m tasks.remote repro STAGE     fetch its result if the remote has it, then have DVC restore or run it
    python -m tasks.remote restore STAGE   the same, but run nothing: exit code 3 where there is no result
    python -m tasks.remote data            bring what .dvc files name
    python -m tasks.remote objects MD5...  bring these into DVC's cache
    python -m tasks.remote push            send the results of dvc.lock that lie here
    python -m tasks.remote state FOLDER    send a training's states while it goes on (`repro` starts it, where STATES
                                           is on)
    python -m tasks.remote probe           whether the remote answers
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks import lineage, processes
from tasks.environment import child_environment, set_environment
from tasks.git import git
from thinner.errors import UserError, did_you_mean, one_line

NAME = "results"  # of the remote in .dvc/config
FETCH = "THINNER_FETCH"  # "yes" in the environment of a flow's stages: ask the remote before anything is computed
STATES = "THINNER_STATES"  # "yes": `repro` goes on from a training's state that the remote has, and sends new ones
NOT_THERE = 3  # exit code of `restore`
ANSWER_SECONDS = 30.0  # for all of a probe
RESUME = Path(".thinner/resume")  # where tasks.stage keeps states
_STATE_SECONDS = 1.0  # between two looks whether there is a new one
EXTRAS = {"s3": "dvc_s3", "gs": "dvc_gs", "ssh": "dvc_ssh"}  # scheme, and extra of pyproject.toml -> module

# Options of DVC's remotes that are secrets: they belong into .dvc/config.local, which git ignores.
SECRETS = (
    "access_key_id", "secret_access_key", "session_token", "sse_customer_key", "password", "passphrase", "token",
    "connection_string", "sas_token", "account_key", "client_secret", "oss_key_id", "oss_key_secret",
    "gdrive_client_secret", "custom_auth_header",
)  # fmt: skip
_AWS_KEY = re.compile(r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")
_BY_DVC = f"or, after thinner remote init --untried, by: dvc remote modify --local {NAME}"
_HOW = {
    "s3": "by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, by --profile NAME of ~/.aws/credentials, "
    f"{_BY_DVC} access_key_id ... (and secret_access_key)",
    "gs": "by GOOGLE_APPLICATION_CREDENTIALS in the environment, by: gcloud auth application-default login, "
    f"{_BY_DVC} credentialpath FILE",
    "ssh": f"by a key of ssh-agent or ~/.ssh, {_BY_DVC} keyfile FILE",
}


def _how(url: str) -> str:
    return _HOW.get(scheme_of(url), f"by: dvc remote modify --local {NAME} password ...")


# ------------------------------------------------------------------------------- addresses


def parse(text: str, root: Path) -> str:
    """The address as DVC keeps it: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, ssh://[USER@]HOST/FOLDER, or the absolute
    path of a folder.

    Raises:
        UserError: it is none of these, or holds credentials (which the message does not repeat).
    """
    scheme, there, rest = text.partition("://")
    if not there:
        return _parse_folder(text, root)
    if scheme not in EXTRAS:
        choices = "Choose one of: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, ssh://HOST/FOLDER, /FOLDER"
        raise UserError(f"remote: unknown scheme '{one_line(scheme, 20)}'. {did_you_mean(scheme, EXTRAS, '', choices)}")
    if holds_secret(text):
        raise UserError(
            f"remote: the {scheme}:// address seems to hold a password or a key, and git would keep it in .dvc/config. "
            f"Nothing is written. Give the address without; credentials come {_HOW[scheme]}"
        )
    host, _, folder = rest.partition("/")
    if not host or any(not sign.isprintable() or sign.isspace() for sign in rest):
        raise UserError(f"remote: '{one_line(text)}' names no {'host' if scheme == 'ssh' else 'bucket'}")
    if scheme == "ssh" and not folder:
        raise UserError(f"remote: '{one_line(text)}' names no folder. For example: {one_line(text)}/srv/thinner")
    return text.rstrip("/")


def _parse_folder(text: str, root: Path) -> str:
    if not text.startswith(("/", "./", "../", "~")):
        raise UserError(
            f"remote: '{one_line(text)}' is no address. Give s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, ssh://HOST/FOLDER "
            "or a folder, which begins with / or ./"
        )
    folder = Path(text).expanduser().resolve()
    if folder.is_relative_to(root.resolve()):
        raise UserError(f"remote: {folder} lies in this working copy, and would go with it. Choose a folder outside")
    if not folder.parent.is_dir():
        raise UserError(f"remote: there is no folder {folder.parent}. Is its disk mounted? Else: mkdir -p {folder}")
    return str(folder)


def holds_secret(url: str) -> bool:
    """Whether an address has a password or a key in it, or something that may be one."""
    scheme, there, rest = url.partition("://")
    user = rest.rpartition("@")[0]
    strange = set("@:") & set(rest) if scheme in ("s3", "gs") else ":" in user or "@" in user
    return bool(there) and bool(strange or set("?#") & set(rest) or _AWS_KEY.search(rest))


def scheme_of(url: str) -> str:
    """s3, gs, ssh; "" of a folder."""
    return url.partition("://")[0] if "://" in url else ""


def check_endpoint(url: str) -> None:
    """Raise UserError for an --endpoint that is no plain http(s) address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--endpoint: '{one_line(url.rpartition('@')[2])}' is no http:// or https:// address")
    if "@" in url or parts.query or parts.fragment or _AWS_KEY.search(url):
        raise UserError(f"--endpoint: it seems to hold a password or a key. Credentials come {_HOW['s3']}")


# ------------------------------------------------------------------------------- what is set up


@dataclass(frozen=True)
class Remote:
    """DVC's default remote."""

    name: str
    url: str


def configured(root: Path) -> Remote | None:
    """The default remote of .dvc/config and .dvc/config.local.

    Raises:
        UserError: .dvc/config, which git keeps, holds a secret; or DVC names a remote that it does not have.
    """
    with _repo(root) as repo:
        for name, options in repo.config.read("repo").get("remote", {}).items():
            found = [key for key in SECRETS if options.get(key)]
            found += [key for key in ("url", "endpointurl") if holds_secret(options.get(key, ""))]
            if found:
                unset = [f"--unset {name} {key}" if key in SECRETS else f"{name} {key} ADDRESS" for key in found]
                moved = " and ".join(f"dvc remote modify {words}" for words in unset)
                raise UserError(
                    f".dvc/config: remote '{name}' holds {', '.join(found)}, and git keeps that file. Take it out "
                    f"({moved}), give it with --local instead, and have a new one issued if it was committed"
                )
        name = repo.config["core"].get("remote")
        if name is None:
            return None
        if name not in repo.config["remote"]:
            raise UserError(f"core.remote of .dvc/config names '{name}', and there is no such remote: dvc remote list")
        url = repo.config["remote"][name]["url"]
        if holds_secret(url):  # in .dvc/config.local, which git does not keep; but messages name the address
            raise UserError(f".dvc/config.local: the url of '{name}' seems to hold a password. It comes {_how(url)}")
        return Remote(name, url)


def required(root: Path) -> Remote:
    """The default remote. Raises UserError where none is set up, or where what speaks to it is not installed."""
    remote = configured(root)
    if remote is None:
        raise UserError(
            "no remote is set up, so nothing can travel. Set one up: thinner remote init s3://BUCKET/FOLDER"
        )
    check_installed(remote.url)
    return remote


def check_installed(url: str) -> None:
    """Raise UserError where DVC's plug-in for the address is missing."""
    scheme = scheme_of(url)
    if scheme in EXTRAS and importlib.util.find_spec(EXTRAS[scheme]) is None:
        plugin = EXTRAS[scheme].replace("_", "-")
        raise UserError(f"{scheme}://: {plugin} is not installed. Install it: pip install -e '.[{scheme}]'")


def write(root: Path, url: str, options: dict[str, str], *, local: bool, replace: bool) -> None:
    """Make ``url`` DVC's default remote, in .dvc/config (``local``: in .dvc/config.local, of this clone only).

    What .dvc/config.local has for a remote of another kind goes: DVC refuses a file that names, say, a password of S3.
    """
    if replace:
        with _repo(root) as repo:
            other = scheme_of(repo.config["remote"].get(NAME, {}).get("url", url)) != scheme_of(url)
            if other and NAME in repo.config.read("local").get("remote", {}):
                with repo.config.edit("local") as config:
                    del config["remote"][NAME]
    with _repo(root) as repo, repo.config.edit("local" if local else "repo") as config:
        config.setdefault("remote", {})
        if replace:
            config["remote"].pop(NAME, None)
        # verify: what comes from there is read once more and compared with its MD5
        config["remote"][NAME] = {"url": url, "verify": True, **options}
        config.setdefault("core", {})["remote"] = NAME


@dataclass(frozen=True)
class Travel:
    """Whether a run asks the remote before it computes, and sends what it made afterwards."""

    pull: bool
    push: bool


def travel(root: Path) -> Travel:
    """Git's `thinner.pull` and `thinner.push`: of this clone, or of the machine where --global set them; else off.

    Git's configuration, because DVC's takes no keys but its own, and params.yaml is the same in all clones.

    Raises:
        UserError: one of them is no boolean, or is on while no remote is set up.
    """
    found = Travel(bool(_flag(root, "thinner.pull")), bool(_flag(root, "thinner.push")))
    if found.pull or found.push:
        required(root)
    return found


def states_travel(root: Path) -> bool:
    """Git's `thinner.states`: whether workers send the states of trainings that go on, so that another one can take
    them up."""
    return bool(_flag(root, "thinner.states"))


def hint(root: Path) -> str | None:
    """What to say before something is computed that the remote may have: where nobody has said whether to ask it."""
    if _flag(root, "thinner.pull") is not None or (remote := configured(root)) is None:
        return None
    return f"{remote.url} may have it: thinner pull brings it; git config thinner.pull true: each run asks first"


def _flag(root: Path, key: str) -> bool | None:
    """None: it is not set."""
    command = ["git", "config", "--type=bool", "--get", key]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise UserError(f"git config {key}: {one_line(done.stderr)}. Set it: git config {key} true")
    return None if done.returncode else done.stdout.strip() == "true"


# ------------------------------------------------------------------------------- fetch


def fetch(root: Path, name: str) -> tuple[bool, int]:
    """Bring what the stage made of its present inputs into DVC's cache, if it is not there and the remote has it.

    Returns whether DVC can restore the stage, and the number of files that came.
    """
    from dvc.exceptions import DvcException
    from dvc.stage.cache import _can_hash, _get_stage_hash

    with _repo(root) as repo:
        stage = repo.stage.load_one(name=name)
        try:
            for dep in stage.deps:
                dep.save()
        except DvcException:  # an input is missing, which DVC will say
            return False, 0
        if not _can_hash(stage):
            return False, 0
        key = _get_stage_hash(stage)
        if lineage.locked_hashes(root).get(name) == key:  # then DVC looks at nothing but dvc.lock
            return _bring(repo, stage, lineage.locked_stages(root)[name])
        cache = repo.stage_cache
        if (known := cache._load(stage)) and (got := _bring(repo, stage, known))[0]:
            return got
        for value, text in _entries_there(repo, key):
            got = _bring(repo, stage, _read_entry(text))
            if got[0]:
                _write_whole(Path(cache._get_cache_path(key, value)), text)
                return got
    return False, 0


def _bring(repo: Any, stage: Any, entry: dict[str, Any]) -> tuple[bool, int]:
    from dvc.exceptions import DvcException

    made = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    if made.outs_cached():
        return True, 0
    came = 0
    try:
        for objects in made.get_used_objs().values():
            came += len(repo.cloud.pull(objects).transferred)
    except DvcException:  # a folder's listing is not there
        return False, came
    return made.outs_cached(), came


def _entries_there(repo: Any, key: str) -> Iterator[tuple[str, bytes]]:
    """The remote's entries for a stage with these inputs: name and content. One that is not what its name says (cut
    off, or of another stage) is none."""
    from dvc.stage.cache import _get_cache_hash

    remote = repo.cloud.get_remote()
    folder = remote.fs.join(remote.path, "runs", key[:2], key)
    try:
        paths = sorted(remote.fs.find(folder))
    except FileNotFoundError:
        return
    for path in paths:
        value = remote.fs.name(path)
        with remote.fs.open(path, "rb") as file:
            text = file.read()
        entry = _read_entry(text)
        if entry and _get_cache_hash(copy.deepcopy(entry)) == value and _get_cache_hash(entry, key=True) == key:
            yield value, text


def _read_entry(text: bytes) -> dict[str, Any]:
    import yaml
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from voluptuous import Invalid

    try:
        return dict(COMPILED_LOCK_FILE_STAGE_SCHEMA(yaml.safe_load(text)))
    except (yaml.YAMLError, Invalid, UnicodeDecodeError):
        return {}


def _write_whole(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent.parent / f".partial-{os.getpid()}-{path.name}"  # DVC takes any file in there for an entry
    partial.write_bytes(text)
    os.replace(partial, path)


def fetch_data(root: Path) -> list[str]:
    """Bring what .dvc files name and what is not here (raw pictures that `dvc add` keeps); returns the paths."""
    missing = missing_data(root)
    if missing:
        with _repo(root) as repo:
            repo.pull(targets=missing)
    return missing


def _fetch_objects(root: Path, md5s: list[str]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo

    with _repo(root) as repo:
        repo.cloud.pull([HashInfo("md5", md5) for md5 in md5s])


def missing_data(root: Path) -> list[str]:
    """What .dvc files name and what is not here."""
    with _repo(root) as repo:
        return [_shown(out) for out in _added(repo) if not out.exists]


def other_data(root: Path) -> list[str]:
    """What .dvc files name and what lies here in another version: older than a commit that was pulled, or edited."""
    if not git(root, "ls-files", "--cached", "--others", "--exclude-standard", "*.dvc"):  # DVC takes its time
        return []
    with _repo(root) as repo:
        return [_shown(out) for out in _added(repo) if out.exists and out.changed_checksum()]


def _added(repo: Any) -> list[Any]:
    """DVC's outputs of `dvc add`."""
    return [out for stage in repo.index.stages if not stage.cmd for out in stage.outs]


def _shown(out: Any) -> str:
    return str(out.def_path if out.is_in_repo else out)


# ------------------------------------------------------------------------------- states of trainings


def state_folder(root: Path, name: str) -> Path:
    """Where the training of this stage keeps its states, below ``root``: as tasks.stage names it."""
    return RESUME / f"{name}-{lineage.inputs(root, name).hash[:16]}"


def _take_up(root: Path, name: str, url: str) -> None:
    """Bring the state of a training that was cut off elsewhere, if none lies here; and from now on send what this one
    leaves, by a process that ends with it. Without a state the stage begins at its beginning."""
    folder = state_folder(root, name)
    try:
        with _repo(root) as repo:
            if not folder.exists() and (text := _read_state(repo, folder.name)) is not None:
                _unpack(text, root / folder)
                print(f"{name}: goes on from a state that {url} had", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever an object store's library raises
        print(f"note: {explain(error, url)}", flush=True)
    subprocess.Popen(
        command("state", folder.name), cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _read_state(repo: Any, name: str) -> bytes | None:
    remote = repo.cloud.get_remote()
    try:
        with remote.fs.open(_place(remote, name), "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def _unpack(text: bytes, folder: Path) -> None:
    """Whole or not at all. Each file in there has its own SHA-256, and a stage does not use one that is damaged."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(text)) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    except (tarfile.TarError, OSError):
        shutil.rmtree(partial, ignore_errors=True)


def _pack(folder: Path) -> bytes | None:
    """The state as it lies there; None where it changes meanwhile."""
    before = _look(folder)
    packed = io.BytesIO()
    try:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in before:
                archive.add(folder / name, name)
    except FileNotFoundError:
        return None
    return packed.getvalue() if before == _look(folder) else None


def _look(folder: Path) -> dict[str, tuple[int, int]]:
    """By name, size and time of each file; what is still being written has another name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            if path.is_file() and ".partial-" not in str(path.relative_to(folder)):
                about = path.stat()
                found[str(path.relative_to(folder))] = (about.st_size, about.st_mtime_ns)
    return found


def _place(remote: Any, name: str) -> str:
    return str(remote.fs.join(remote.path, "states", f"{name}.tar"))


def send_states(root: Path, name: str, over: Callable[[], bool]) -> None:
    """Send the folder of that name in .thinner/resume each time it has changed, until ``over``. A stage that is done
    removes it, and what lies there goes then."""
    folder = root / RESUME / name
    sent: dict[str, tuple[int, int]] = {}
    with _repo(root) as repo:
        remote = repo.cloud.get_remote()
        there = _place(remote, name)
        while True:
            last, now = over(), _look(folder)
            with suppress(Exception):  # whatever an object store's library raises: the next round tries again
                if now and now != sent and (text := _pack(folder)) is not None:
                    remote.fs.makedirs(remote.fs.parent(there), exist_ok=True)
                    with remote.fs.open(there, "wb") as file:
                        file.write(text)
                    sent = now
            if last:
                break
            time.sleep(_STATE_SECONDS)
        if not folder.exists() and remote.fs.exists(there):
            remote.fs.rm_file(there)


# ------------------------------------------------------------------------------- push


@dataclass(frozen=True)
class Sent:
    """What a push found here, and what of it was new there."""

    stages: tuple[str, ...]  # of dvc.lock, whose results lie here
    results: int  # entries of the run cache; with `everything` more than there are stages
    files: int  # that the remote did not have


def push(root: Path, *, everything: bool = False) -> Sent:
    """Send the results of dvc.lock and what .dvc files name; ``everything``: every result that DVC's cache here has.

    An entry goes after its files, so whoever sees it can have them.
    """
    with _repo(root) as repo:
        cache = repo.stage_cache
        keys = lineage.locked_hashes(root)
        runs = Path(cache.cache_dir)
        named = sorted(runs.glob("??/*/*")) if everything else []
        if not everything:
            for key in dict.fromkeys(keys.values()):
                named += sorted(Path(cache._get_cache_dir(key)).glob("*"))
        objects: set[Any] = set()
        entries: list[Path] = []
        for path in named:
            entry = _read_entry(path.read_bytes())
            made = cache._create_stage(entry) if entry.get("outs") else None
            if made is not None and made.outs_cached():
                entries.append(path)
                objects.update(*made.get_used_objs().values())
        for stage in repo.index.stages:
            for out in stage.outs if not stage.cmd else []:
                if not out.changed_cache():
                    objects.update(*out.get_used_objs(push=True).values())
        done = repo.cloud.push(objects) if objects else None
        if done is not None and done.failed:
            raise UserError(f"{len(done.failed)} of {len(objects)} files could not be sent. Send them: thinner push")
        remote = repo.cloud.get_remote()
        new = 0
        for path in entries:
            there = remote.fs.join(remote.path, "runs", *path.relative_to(runs).parts)
            if not remote.fs.exists(there):
                remote.fs.put_file(str(path), there)
                new += 1
        here = {path.parent.name for path in entries}
        stages = tuple(name for name, key in keys.items() if key in here)
        return Sent(stages, len(entries), new + (len(done.transferred) if done is not None else 0))


# ------------------------------------------------------------------------------- whether it answers


def probe(root: Path, options: dict[str, str] | None = None, *, writing: bool = False) -> None:
    """See that the remote answers; ``writing``: and that a file can be written there, which is removed again.

    ``options`` of a remote that is not set up yet.

    Raises:
        UserError: what it answered, and the mend.
    """
    asked = json.dumps({"options": options, "writing": writing})
    command = [sys.executable, "-m", "tasks.remote", "probe", asked]
    env = {"AWS_MAX_ATTEMPTS": "2", "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "1", **child_environment()}
    remote = options or {"url": required(root).url}
    try:
        done = subprocess.run(
            command, cwd=root, env=env, text=True, capture_output=True, timeout=ANSWER_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        text = f"{remote['url']}: did not answer within {ANSWER_SECONDS:g} seconds. Is the address right?"
        how = _HOW.get(scheme_of(remote["url"]))
        raise UserError(f"{text} Credentials come {how}" if how else text) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(lines[-1] if lines else f"{remote['url']}: the look ended with code {done.returncode}")


def _probe(root: Path, options: dict[str, str] | None, writing: bool) -> None:
    from dvc.fs import get_cloud_fs

    with _repo(root) as repo:
        name = NAME if options else repo.config["core"]["remote"]
        patience = {"connect_timeout": 5, "read_timeout": 10}
        given = patience if options and scheme_of(options["url"]) == "s3" else {}
        known = dict(repo.config["remote"].get(name, {}))
        if options and scheme_of(known.get("url", "")) != scheme_of(options["url"]):
            known = {}  # else with what --local has for it: credentials, a key's file
        cls, config, path = get_cloud_fs(repo.config, **{**given, **known, **(options or {})})
        fs = cls(**config)
        if not writing:
            fs.exists(fs.join(path, "runs"))
            return
        trial = fs.join(path, f"thinner-{os.urandom(6).hex()}")
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(trial, b"written and removed by: thinner remote init\n")
        fs.rm_file(trial)


def explain(error: BaseException, url: str) -> str:
    """One line for what a remote, or what speaks to it, has raised; with the mend."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    scheme = scheme_of(url)
    how = _HOW.get(scheme, "")
    for one in chain:
        names = {cls.__name__ for cls in type(one).__mro__}
        text = str(one)
        if names & _NO_CREDENTIALS or text.startswith("Anonymous caller "):  # Google's words, where nobody signed
            return f"{url}: no credentials were found. They come {how}"
        if names & {"ProfileNotFound"}:
            return f"{url}: {one_line(text)}. Its name stands in ~/.aws/credentials or ~/.aws/config"
        if names & _SILENT:
            return f"{url}: does not answer ({one_line(_without_secrets(text), 120)}). Is the address right?"
        if names & {"NoSuchBucket", "FileNotFoundError"}:
            return f"{url}: there is no such {'bucket' if scheme in ('s3', 'gs') else 'folder'}. Make it first"
        if names & _REFUSED or "Access Key Id" in text or text.startswith("Forbidden: "):  # gcsfs raises OSError
            mend = f"Other credentials come {how}" if how else "Mend its owner or mode"
            return f"{url}: refused ({one_line(_without_secrets(text), 120)}). {mend}"
    return f"{url}: {type(chain[0]).__name__}: {one_line(_without_secrets(str(chain[0])))}"


_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError",
}  # fmt: skip
_REFUSED = {"PermissionError", "PermissionDenied", "SFTPPermissionDenied", "Forbidden"}
_SILENT = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "ConnectionError",
    "ClientConnectorError", "TimeoutError", "gaierror", "ConnectionLost",
}  # fmt: skip


def _without_secrets(text: str) -> str:
    """What the environment holds as a secret is not repeated."""
    for name, value in os.environ.items():
        if re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", name) and len(value) >= 8:
            text = text.replace(value, "***")
    return _AWS_KEY.sub("***", text)


# ------------------------------------------------------------------------------- transfers, each a process


def command(verb: str, *more: str) -> list[str]:
    """The command of a process that does it. Transfers are processes of their own: one can be ended."""
    return [sys.executable, "-m", "tasks.remote", verb, *more]


def note_other_data(root: Path, say: Callable[[str], None]) -> None:
    """DVC hashes what lies here, whatever a pointer says: results are of that, and a person is to know."""
    for path in other_data(root):
        say(
            f"note: {path} is not what {path}.dvc names, and this takes it as it lies here. To have that instead: "
            f"dvc pull {path}.dvc; if you edited it: dvc add {path}"
        )


def bring_data(root: Path, say: Callable[[str], None]) -> None:
    """Bring what .dvc files name (raw pictures that `dvc add` keeps) and is not here.

    Raises:
        UserError: it could not be brought.
    """
    if missing_data(root):
        run(root, command("data"), say)


def answers(root: Path, warn: Callable[[str], None]) -> bool:
    """Whether the remote answers; where it does not, ``warn`` is told that the run goes on without it."""
    try:
        probe(root)
    except UserError as error:
        warn(f"this run goes on without the remote: {error}")
        return False
    return True


def send(root: Path, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Send the results of dvc.lock. What fails is no failure of the run: the results are here."""
    try:
        run(root, command("push"), say)
    except UserError as error:
        warn(f"the results were not sent: {error}. To send them: thinner push")


def run(root: Path, words: list[str], say: Callable[[str], None]) -> int:
    """The exit code: 0, or that of "not there". Raises UserError with the last thing said for any other."""
    done = subprocess.run(
        words, cwd=root, env=child_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode not in (0, NOT_THERE):
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(lines[-1] if lines else f"{' '.join(words[2:])}: exit code {done.returncode}")
    for line in done.stdout.splitlines():
        say(line)
    return done.returncode


# ------------------------------------------------------------------------------- the program


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except NotDvcRepoError as error:
        raise UserError(f"{root} is not under DVC: dvc init makes it so") from error
    except DvcException as error:
        raise UserError(f"DVC: {one_line(_without_secrets(str(error)))}") from error


def main() -> int:
    verb, *more = sys.argv[1:]
    set_environment()
    for library in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what is missing there is said by us
    root = Path.cwd()
    asked: dict[str, Any] = json.loads(more[0]) if verb == "probe" and more else {"options": None, "writing": False}
    url = asked["options"]["url"] if asked["options"] else ""
    try:
        url = url or required(root).url
        if verb == "probe":
            _probe(root, asked["options"], asked["writing"])
        elif verb == "push":
            sent = push(root)
            print(f"{url} has the results of {len(sent.stages)} stages; {sent.files} of their files were new there")
        elif verb == "data":
            for path in fetch_data(root):
                print(f"{path}: came from {url}")
        elif verb == "objects":
            _fetch_objects(root, more)
        elif verb == "repro":
            with suppress(_NotReachedError):
                if not _fetch(root, more[0], url) and os.environ.get(STATES) == "yes":
                    _take_up(root, more[0], url)
            _run_dvc(more[0])
        elif verb == "state":
            parent = os.getppid(), processes.started(os.getppid())
            send_states(root, more[0], lambda: not processes.is_alive(*parent))
        elif verb == "restore":
            if not _fetch(root, more[0], url):
                return NOT_THERE
            _run_dvc(more[0])
        else:
            raise UserError(
                f"tasks.remote: unknown '{verb}'. Choose one of: repro, restore, data, objects, push, probe, state"
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever an object store's library raises
        print(explain(error, url), file=sys.stderr)
        return 1
    return 0


class _NotReachedError(UserError):
    """The remote could not be asked; a stage can be computed without it."""


def _fetch(root: Path, name: str, url: str) -> bool:
    try:
        there, came = fetch(root, name)
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else explain(error, url)
        print(f"note: {text}", flush=True)
        raise _NotReachedError(text) from error
    if came:
        print(f"{name}: {came} file{'s' * (came != 1)} came from {url}", flush=True)
    if came and not there:
        print(f"{name}: its result is not whole there", flush=True)
    return there


def _run_dvc(name: str) -> None:
    """DVC takes this process over: who watches it, or ends it, needs to know no other."""
    command = lineage.reproduce_command(name, alone=True)
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    sys.exit(main())
