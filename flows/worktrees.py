"""Runs in git worktrees of HEAD that share the repository's DVC cache: what a study and verdicts over seeds share.

So nothing is trained twice, the working copy stays as it is, and what was stopped goes on where it was.
"""

from __future__ import annotations

import configparser
import contextlib
import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import console, server, slots
from flows.pipeline import ended_after, is_talk, kill_group, select, start_dvc, stoppable
from flows.record import Record
from tasks import forks, lineage, processes
from tasks.environment import CHECKED, FLOW, HOME, PARENT, PROGRESS, UNSENT, child_environment
from tasks.git import git
from tasks.record.mlflow_client import VARIANT, tracking_uri
from tasks.stage import params_digest
from thinner.config import ParamsError, load_params
from thinner.errors import UserError
from thinner.files import yaml_files

if TYPE_CHECKING:
    from flows.engines import Engine

# What a person keeps outside of git and stages read: worktrees see the repository's own.
OUTSIDE = ("data/teachers", "data/weights")
_LOCAL = Path(".dvc") / "config.local"
# Changes to these concern no result.
HARMLESS = ("reports", "docs", "studies", "searches", "tests", "dvc.lock")


class Worktrees:
    """Copies of HEAD in which runs work, kept until all is done.

    ``sources``: (data.root, data.source) of every run, where they are not all those of params.yaml. ``commit``: copies
    of this one instead. Not ``linked``: they have raw data of their own. ``engine``: what makes the stages of these
    runs, if not this machine.
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], sources: Collection[tuple[str, str]] = (), commit: str | None = None,
        linked: bool = True, engine: Engine | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        if not sources:
            data = load_params(root / "params.yaml").data
            sources = [(data.root, data.source)]
        for place, source in sources if linked else ():
            if os.path.normpath(place) == ".":
                raise UserError(
                    f"data.root: '{place}' is this repository itself, of which a copy has what git knows and no "
                    "pictures. Put them into a folder: thinner set data.root=data/raw"
                )
            lineage.check_data(str(root / place), source)  # or DVC would hang at a FIFO, in each of them
        self._raw = [place for place, _ in sources if not os.path.isabs(place)]  # that leads there from a copy, too
        places = dict.fromkeys([*(self._raw if linked else ()), *OUTSIDE])
        self._root, self._free = root, threading.Condition()
        self.commit = commit or head(root)
        cache = lineage.cache_folder(root)
        self._outside = [place for place in places if (root / place).is_dir()]
        self.paths = [self._make(path, cache) for path in paths]
        self._idle = list(self.paths)
        self._seeds: dict[Path, int | None] = dict.fromkeys(self.paths)

    def _make(self, path: Path, cache: Path) -> Path:
        for place in [*self._outside, *self._raw]:
            if (path / place).is_symlink():
                (path / place).unlink()
        if (path / ".git").exists():
            self._make_ours(path)
        if (path / ".git").exists():
            _unlock(path)
            lineage.mend_rwlock(path)
            git(path, "checkout", "--quiet", "--force", "--detach", self.commit)
        else:
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)  # or git would not know a path that is registered
            git(self._root, "worktree", "add", "--quiet", "--force", "--detach", str(path), self.commit)
        for place in self._outside:
            if (path / place).is_symlink():  # what leads out of two copies is one link
                (path / place).unlink()
            elif Path(os.path.normpath(place)).parts[0] != "..":  # what lies outside of the copy is not ours to remove
                shutil.rmtree(path / place, ignore_errors=True)
            elif (path / place).exists():
                raise UserError(
                    f"data.root: '{place}' leads out of this repository, and in a copy of it to "
                    f"{os.path.normpath(path / place)}, where something else lies. Give the absolute path: "
                    f"thinner set data.root={os.path.normpath(self._root / place)}"
                )
            (path / place).parent.mkdir(parents=True, exist_ok=True)
            (path / place).symlink_to(self._root / place)
        _share_cache(self._root / _LOCAL, path / _LOCAL, cache)
        return path

    def _make_ours(self, path: Path) -> None:
        """Where this repository was moved, or is a copy of another one, a worktree names the record that it has there.
        It gets its own, and without one it goes. `git worktree repair` would take the other repository's as well."""
        named = Path((path / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip())
        records = (self._root / git(self._root, "rev-parse", "--git-common-dir")).resolve() / "worktrees"
        record = records / named.name
        if not named.name or not record.is_dir() or _is_of_another(record, path):
            (path / ".git").unlink()
        elif named.resolve() != record:
            (record / "gitdir").write_text(f"{path / '.git'}\n", encoding="utf-8")
            (path / ".git").write_text(f"gitdir: {record}\n", encoding="utf-8")

    @contextlib.contextmanager
    def borrow(self, seed: int) -> Iterator[Path]:
        """A free one, if possible the one that worked with this seed last and holds its data."""
        with self._free:
            self._free.wait_for(lambda: self._idle)
            path = next((p for p in self._idle if self._seeds[p] == seed), self._idle[0])
            self._idle.remove(path)
            self._seeds[path] = seed
        try:
            yield path
        finally:
            with self._free:
                self._idle.append(path)
                self._free.notify()

    def remove(self) -> None:
        for path in self.paths:
            for place in self._outside:
                (path / place).unlink(missing_ok=True)
            git(self._root, "worktree", "remove", "--force", str(path))


def _is_of_another(record: Path, path: Path) -> bool:
    """Whether git's ``record`` is that of another worktree than ``path``, which stands and says so, too."""
    try:
        other = Path((record / "gitdir").read_text(encoding="utf-8").strip())
        theirs = other.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    except OSError:
        return False
    return other.resolve() != (path / ".git").resolve() and Path(theirs).resolve() == record


def _share_cache(theirs: Path, mine: Path, cache: Path) -> None:
    """Where DVC's results lie, beside what the repository alone knows, such as how its remote lets one in."""
    config = configparser.RawConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]
    with contextlib.suppress(configparser.Error):  # then DVC says so, there
        config.read(theirs)
    if not config.has_section("cache"):
        config.add_section("cache")
    config["cache"]["dir"] = quoted(cache)
    mine.unlink(missing_ok=True)
    with open(mine, "w", opener=lambda name, flags: os.open(name, flags, 0o600), encoding="utf-8") as file:
        config.write(file)


def quoted(path: Path) -> str:
    """As DVC's configuration wants it, where a comma makes a list and # a comment."""
    return f"'{path}'" if '"' in str(path) else f'"{path}"'


def head(root: Path) -> str:
    return git(root, "rev-parse", "HEAD")


def refuse_changes(root: Path, why: str) -> None:
    """UserError if anything that a result may rest on is not committed: worktrees would not have it."""
    if changed := changes(root):
        raise UserError(f"{', '.join(changed[:5])}: changed since the last commit. {why}: git commit first")


def changes(root: Path) -> list[str]:
    """The files that a result may rest on and that are not as they were committed."""
    lines = git(root, "status", "--porcelain").splitlines()
    # what git does not know is nobody's, but for networks of one's own
    changed = [line[3:] for line in lines if not line.startswith("??") or line[3:].startswith("nets/")]
    return [name for name in changed if name.split("/")[0] not in HARMLESS]


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers. Raises UserError for what is no seed, or given twice."""
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise UserError(f"--seeds: '{wrong[0]}' is no seed. Give whole numbers from 0 on, such as 0,1,2")
    found = [int(part) for part in parts]
    if len(set(found)) < len(found):
        raise UserError(f"--seeds: {text} has one twice. Give each once")
    return found


def with_values(root: Path, values: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """params.yaml (or what it was when ``base`` was read) with these values, by dotted key, in it. Raises UserError for
    a section that is not there; what is wrong below that, load_params says."""
    params: dict[str, Any] = yaml_files.read(root / "params.yaml") if base is None else copy.deepcopy(dict(base))
    for key, value in values.items():
        *sections, last = key.split(".")
        place = params
        for section in sections:
            if not isinstance(place, dict) or not isinstance(place.get(section), dict):
                raise UserError(f"set: '{key}' is no key of params.yaml: there is no section '{section}'")
            place = place[section]
        place[last] = copy.deepcopy(value)
    return params


def mistakes(root: Path, params: Mapping[str, Any], deep: bool = False) -> list[str]:
    """What is wrong with these parameters, one line each; ``deep``: with all that needs torch to be seen."""
    temporary = root / ".thinner" / "sweeps" / f"check-{os.getpid()}.yaml"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(yaml.safe_dump(dict(params), sort_keys=False))
    try:
        load_params(temporary, deep=deep)
    except ParamsError as error:
        return error.lines
    finally:
        temporary.unlink()
    return []


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    remove_others(folder, params)


def remove_others(folder: Path, params: Mapping[str, Any]) -> None:
    """Take away networks and reports of an earlier run there that one with these ``params`` does not have: stages
    depend on the folders around them, and whoever reads reports would tell of them. A checkout has set dvc.lock back,
    which would name them."""
    also, trained = params.get("prune_also") or [], (params.get("self_train") or {}).get("networks") or []
    for section, names in (("prune_also", also), ("self_train", trained)):
        for top in ("data", "reports"):
            for path in (folder / top / section).glob("*"):
                if path.is_dir() and not path.is_symlink() and path.name not in names:
                    shutil.rmtree(path)


def _unlock(tree: Path) -> None:
    """Take away what a git that was killed has left of its lock: nobody else works there, and we hold ours."""
    with contextlib.suppress(OSError):
        kept = (tree / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        (Path(kept) / "index.lock").unlink()


# ---------------------------------------------------------------------------------------------------- flows


# a flow's first act: MLflow's run of it is opened. What its runs are told; None: it was refused, and nothing may run
Begin = Callable[[], dict[str, str] | None]
NOT_BEGUN = "MLflow's run could not be opened"


def conduct(
    root: Path, name: str, workers: int, trees: Worktrees, work: Flow[..., State], *arguments: Any,
    modules: Sequence[str] = (),
) -> State:  # fmt: skip
    """The whole life of a flow that works in worktrees and is given them, and `Begin`, after the ``arguments``:
    MLflow's run above the runs, the flow, and if all went well the end of the worktrees. ``modules`` are imported
    while other processes import theirs.

    Raises:
        UserError: MLflow's run could not be opened.
    """
    slots.count(root)
    server.leave_dead()
    if said := lineage.mend(root):
        console.console.print(said, style="yellow", markup=False)
    alive = child_environment(**{FLOW: processes.mark()})
    forking = forks.Server.start(alive)
    # MLflow's run also makes the database before several processes meet in it
    recorder = Record.start(root, alive | forking.environment)
    environment: dict[str, str] = {}  # once it is open, which takes as long as Prefect's server does to start
    refused: list[UserError] = []

    def begin() -> dict[str, str] | None:
        try:
            opened = recorder.open(name)
        except UserError as error:
            refused.append(error)
            return None
        if opened.said:
            console.console.print(opened.said, style="yellow", markup=False)
        environment.update(
            {
                PARENT: opened.run_id,
                "MLFLOW_TRACKING_URI": tracking_uri(),
                UNSENT: "yes" if opened.kept else "no",
                HOME: str(root),  # what is kept in a worktree would go with it
                **forking.environment,
            }
        )
        return environment

    console.take_over()
    threads: Any = ThreadPoolTaskRunner(max_workers=workers)
    named = work.with_options(flow_run_name=name, task_runner=threads)
    status = "KILLED"
    try:
        for module in modules:
            importlib.import_module(module)
        with stoppable("Stopping. What was finished is kept; the same command goes on."):
            state = server.outlived(lambda: named(*arguments, trees, begin, return_state=True))
        status = "FINISHED" if state.is_completed() else "FAILED"
    finally:
        if environment:
            closed = recorder.close(root, child_environment(**environment), environment[PARENT], status=status)
            if not closed.well:
                said = f"MLflow's run of {name} was not closed: {closed.error[-300:]}"
                console.console.print(said, style="yellow", markup=False)
        else:
            recorder.leave()
        forking.end()
    if refused:
        raise refused[0]
    if status == "FINISHED":
        trees.remove()
    return state


_processes: dict[subprocess.Popen[str], int] = {}  # -> the thread that hears it
cancelled = threading.Event()


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Around the work of a flow: when that is stopped (Ctrl-C, SIGTERM, cancelled), what runs in worktrees is ended."""
    cancelled.clear()
    server.remember()
    console.start_bars()
    try:
        yield
    except BaseException:
        end_all()
        raise
    finally:
        console.stop_bars()


def end_all() -> None:
    """Begin nothing more, and end what runs."""
    cancelled.set()
    for process in list(_processes):
        kill_group(process)


def end_processes_of(thread: int) -> None:
    """End what this thread has started and still hears."""
    for process in [process for process, hearer in list(_processes.items()) if hearer == thread]:
        kill_group(process)


def verdict(states: Mapping[str, State], what: str) -> State:
    """The flow's own state, from those of its parts; it names each that failed."""
    failed = [state.message or name for name, state in states.items() if not state.is_completed()]
    if failed:
        lines = [f"{len(failed)} of {len(states)} failed:", *(f"  {message}" for message in failed)]
        return server.decided(Failed(message="\n".join(lines)))
    return server.decided(Completed(message=f"{len(states)} {what}"))


_checks: dict[str, str] = {}
_checking = threading.Lock()


def check_params(folder: Path, environment: Mapping[str, str]) -> str:
    """What is wrong with the params.yaml there, looked at in depth, or nothing: once for all runs that differ by their
    seed alone, where each of their stages would look, for seconds, by itself."""
    root = Path(environment[HOME])
    with _checking:
        if os.environ.get(CHECKED) == params_digest(root):
            _checks[_but_the_seed(root)] = ""
        key = _but_the_seed(folder)
        if key not in _checks:
            done = subprocess.run(
                [sys.executable, "-m", "tasks.check"], cwd=folder, env=child_environment(**environment),
                text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            if not 0 <= done.returncode <= 128:  # stopped by a signal, itself or the fork that it stands for
                return "tasks.check was stopped. If nobody did that, memory ran out: fewer --workers"
            _checks[key] = (
                "" if not done.returncode else done.stderr.strip() or f"tasks.check ended with {done.returncode}"
            )
        return _checks[key]


def _but_the_seed(folder: Path) -> str:
    params = with_values(folder, {"run.seed": 0})
    return json.dumps(params, sort_keys=True, default=str)


# is told of a stage's bars while it runs: its description, `done` of `total`, `numbers`; what it raises ends the stage
Heard = Callable[[Mapping[str, Any]], None]


def reproduce(
    folder: Path, nodes: Sequence[lineage.Node], name: str, environment: Mapping[str, str], logger: Any,
    heard: Heard | None = None,
) -> str | None:  # fmt: skip
    """Bring the stages up to date there; what went wrong, or None. MLflow's runs are tagged by ``name``, such as
    `kd seed 3`."""
    if wrong := check_params(folder, environment):
        return wrong
    return perform(nodes, lineage.reproduce_command(*(n.name for n in nodes)), folder, name, environment, logger, heard)


def perform(
    nodes: Sequence[lineage.Node], command: Sequence[str], folder: Path, name: str, environment: Mapping[str, str],
    logger: Any, heard: Heard | None = None,
) -> str | None:  # fmt: skip
    """Have a command of DVC's run these stages of the params.yaml there, which has been checked; as `reproduce`."""
    checked = {**environment, VARIANT: name, CHECKED: params_digest(folder)}
    limits = [node.timeout_seconds for node in nodes]
    seconds = None if None in limits else sum(limit for limit in limits if limit is not None)
    with slots.held(folder, logger, cancelled.is_set):
        if cancelled.is_set():  # while it waited
            return "cancelled"
        said, code = hear(command, folder, name, checked, logger, heard, seconds)
    if code == 0:
        return None
    if said and said[-1] == TOO_LONG:
        return f"{', '.join(node.name for node in nodes)}: {TOO_LONG}, {(seconds or 0) / 60:g} minutes"
    told = [line for line in said if not is_talk(line) and not line.startswith("> ")]
    return told[-1] if told else f"dvc ended with {code}"


def bring_up_to_date(
    folder: Path, target: str, name: str, environment: Mapping[str, str], logger: Any,
    shared: dict[str, threading.Lock], after: Callable[[str], None] = lambda stage: None,
    engine: Engine | None = None, heard: Callable[[str], Heard | None] = lambda stage: None,
) -> str | None:  # fmt: skip
    """What went wrong with the target and all that it needs, or None. Stage by stage: of the runs that need the very
    same one (``shared``: a lock for each), whoever comes first makes it, and the others wait for that and no longer.
    ``after`` is called with each stage's name once that is up to date; what it raises ends the run. ``engine``: what
    makes the stages, if not this machine; else ``heard`` names who is told of a stage's bars."""

    def make(node: lineage.Node) -> str | None:
        if engine is not None:
            return engine.make(folder, node.name, name, environment, logger)
        return reproduce(folder, [node], name, environment, logger, heard(node.name))

    for node in select(lineage.graph(folder), [target]):
        with shared.setdefault(lineage.key(folder, node.name), threading.Lock()):
            if cancelled.is_set():
                return "cancelled"
            if lineage.reasons(folder, node.name) and (failure := make(node)):
                return failure
        after(node.name)
    return None


TOO_LONG = "took longer than meta.timeout_minutes in dvc.yaml allows"


def run_program(
    folder: Path, command: Sequence[str], name: str, environment: Mapping[str, str], logger: Any
) -> str | None:
    """`python -m COMMAND` there, ended with the flow as stages are; its last line where it went wrong, or None."""
    said, code = hear([sys.executable, "-m", *command], folder, name, environment, logger)
    return None if code == 0 else said[-1] if said else f"{command[0]} ended with {code}"


def hear(
    command: Sequence[str], folder: Path, name: str, environment: Mapping[str, str], logger: Any,
    heard: Heard | None = None, seconds: float | None = None,
) -> tuple[list[str], int]:  # fmt: skip
    """(what the command said but for its progress, its exit code). It is ended, and that is said last, if it takes
    longer than so many ``seconds``."""
    process = start_dvc(list(command), folder, environment)
    _processes[process] = threading.get_ident()
    said: list[str] = []
    assert process.stdout is not None
    try:
        with ended_after(seconds, process) as timed_out:
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    with contextlib.suppress(json.JSONDecodeError, KeyError):
                        event = json.loads(line.removeprefix(PROGRESS))
                        console.show_progress(event | {"stage": name}, logger)
                        if heard is not None:
                            heard(event)
                elif line.strip():
                    said.append(line.rstrip())
            code = process.wait()
        if timed_out.is_set():
            said.append(TOO_LONG)
    except BaseException:  # ``heard`` ends it; Ray cancels a task so, and nothing else would end the process then
        kill_group(process)
        raise
    finally:
        _processes.pop(process, None)
        process.stdout.close()
    return said, code
