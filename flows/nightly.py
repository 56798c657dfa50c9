"""A run that nobody watches: by the clock, or when data have come. prefect.yaml schedules it.

Around the pipeline (flows/pipeline.py) it does what a person would do before and after: take the commit to run, put in
other values, keep the results on a branch, publish a page, and tell how it went.

    python -m flows.nightly                                  once, now, as `nightly` of prefect.yaml does
    python -m flows.nightly --only-new-data                  nothing, unless raw data have changed
    python -m flows.nightly --set distill.temperature=2      with another value, for this run only
    python -m flows.nightly --try-message                    send a message, run nothing

With a value, a commit or a branch of its own it runs in a git worktree that shares DVC's cache: params.yaml, the index
and the branch that is checked out stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from flows import arrivals, console, ending, messages, pipeline, recipes, server
from flows.worktrees import Worktrees, changes, head, remove_others
from tasks import branches, lineage, processes, remote
from tasks.environment import HOME, child_environment, repository_root
from tasks.record.mlflow_client import tracking_uri, without_passwords
from thinner.config import ParamsError, load_params
from thinner.errors import UserError, one_line

PLACE = Path(".thinner") / "nightly"
RESULTS = ("params.yaml", "dvc.lock", "reports")  # what a branch gets
SETTLE_SECONDS = 120.0


class _BusyError(UserError):
    """Another run is at work here; this one is dropped."""


@flow(
    name="thinner",  # `thinner/nightly` has been the deployment's name from the first
    flow_run_name=lambda: datetime.now().strftime(f"{deployment.name or 'nightly'} %Y-%m-%d %H:%M:%S"),
    persist_result=False,
    validate_parameters=True,
)
def nightly(
    stages: list[str] | None = None,
    jobs: Annotated[int, Field(ge=1)] = 2,
    set: dict[str, Any] | None = None,
    ref: str | None = None,
    commit_to: str | None = None,
    only_new_data: bool = False,
    settle_seconds: float = SETTLE_SECONDS,
    notify: Literal["always", "changes", "failure", "never"] = "changes",
) -> State:
    """Bring the stages (all by default) up to date and tell how it went.

    Args:
        set: values by key of params.yaml, such as {"distill.temperature": 2}, for this run only
        ref: the commit to run; a branch of a remote, such as origin/main, is fetched first. None: what lies here
        commit_to: a branch that params.yaml, dvc.lock and reports are committed to, once all has run. None: none
        only_new_data: end at once unless raw data have changed since the last run that this started
        settle_seconds: how long they must have stayed as they are
        notify: when a message is sent, if there is somewhere to send it to. changes: when the outcome has changed
    """
    logger = get_run_logger()
    server.remember()
    root, name = repository_root(), deployment.name or "nightly"
    seen = None
    try:
        if only_new_data:
            seen = _look(root, ref)
            if why := arrivals.news(root, seen, settle_seconds):
                logger.info(why)
                return server.decided(Completed(name="NothingNew", message=why))
        state, night = _night(root, name, stages, jobs, set or {}, ref, commit_to)
    except _BusyError as busy:
        logger.warning("%s", busy)
        return server.decided(Completed(name="Skipped", message=str(busy)))
    except UserError as error:
        state = Failed(message=str(error))
        night = _refused(root, name, str(error), _retry(root, stages, jobs, set or {}, ref, commit_to))
    wrong = []
    if seen is not None and night.end["verdict"] != "refused":  # refused: a remote was down, say; they are new still
        try:
            arrivals.remember(root, seen)
        except OSError as error:  # a full disk; whoever waits for the message has to hear of it
            wrong.append(
                f"what was looked at is not remembered ({error.strerror}): the next look starts this run again"
            )
    for line in [*wrong, *_publish(night), *tell(root, night, notify)]:
        logger.warning("%s", line)
    return server.decided(state)


def _publish(night: messages.Night) -> list[str]:
    """A page in Prefect; what went wrong, in lines."""
    if server.has_gone():
        return []
    try:
        key = "-".join(re.findall("[a-z0-9]+", f"thinner-{night.name}".lower()))  # what Prefect takes
        create_markdown_artifact(messages.markdown(night), key, messages.title(night))
    except (httpx.HTTPError, PrefectException, ValueError) as error:
        return [f"no page in Prefect: {one_line(error)}"]
    return []


def _look(root: Path, ref: str | None) -> arrivals.Look:
    pointers = branches.pointers_of(root, branches.commit_of(root, ref)) if ref else ""
    return arrivals.look(root, load_params(root / "params.yaml").data.root, pointers)


def _night(
    root: Path, name: str, stages: list[str] | None, jobs: int, values: dict[str, Any], ref: str | None,
    commit_to: str | None,
) -> tuple[State, messages.Night]:  # fmt: skip
    retry = _retry(root, stages, jobs, values, ref, commit_to)
    beside = bool(values or ref or commit_to)
    with _only_one(root, beside), _place(root, values, ref, commit_to) as folder:
        state: State = pipeline.pipeline(stages, jobs, return_state=True)
        nodes: list[lineage.Node] = []
        with contextlib.suppress(UserError):  # the state has the reason
            nodes = pipeline.select(lineage.graph(folder), stages)
        if well := state.is_completed():
            done = ending.results(folder) if "report" in (node.name for node in nodes) else None
            verdict, message = done or ("done", f"up to date: {', '.join(node.name for node in nodes)}")
        else:
            ran = any(node.name in pipeline.ended() for node in nodes)
            verdict, message = "failed" if ran else "refused", state.message or state.name or ""
        end = pipeline.as_json(folder, nodes, verdict, message)
        kept = _keep(folder, name, end, values, commit_to) if commit_to and well else None
        commit = _commit_in_words(folder, values)
        night = messages.Night(name, folder, end, commit, retry, pipeline.run_in_mlflow(), _page(), kept)
    # a state of its own: Prefect would take the other flow's for a result, and judge that
    return (Completed if well else Failed)(name=state.name, message=message), night


@contextlib.contextmanager
def _only_one(root: Path, beside: bool) -> Iterator[None]:
    """Not beside another such run, nor beside a run of the pipeline here. ``beside``: it works in a worktree, and who
    began a run here meanwhile would measure beside it."""
    with contextlib.ExitStack() as held:
        try:
            busy = "another scheduled run is at work in this folder, so this one is dropped"
            held.enter_context(processes.only_one(root / PLACE / "lock", busy))
            here = held.enter_context(contextlib.ExitStack())
            here.enter_context(pipeline.only_run(root))
            if not beside:  # the pipeline takes it itself
                here.close()
        except UserError as error:
            raise _BusyError(str(error)) from None
        yield


@contextlib.contextmanager
def _place(root: Path, values: dict[str, Any], ref: str | None, commit_to: str | None) -> Iterator[Path]:
    """The folder to run in, which is the current one meanwhile: this working copy, or a worktree of a commit of it.

    Raises:
        UserError: a value is none that params.yaml could hold, or a name names nothing. Nothing has changed then.
    """
    if not (values or ref or commit_to):
        yield root
        return
    if commit_to:
        branches.check(root, commit_to)
    commit = branches.commit_of(root, ref) if ref else head(root)
    if commit_to:
        branches.check_merge(root, commit_to, commit, RESULTS)
    params = root / PLACE / "params.yaml"
    params.write_text(branches.file_of(root, commit, "params.yaml"), encoding="utf-8")
    _put_in(params, values)
    asked = load_params(params)
    data = asked.data
    pull = remote.travel(root).pull
    pointers = _pointers(branches.pointers_of(root, commit), data.root)
    if pull and not pointers:
        remote.bring_data(root, get_run_logger().info)  # here, for the worktree sees the same folder
    if tracking_uri().startswith("sqlite") and not (root / "mlflow.db").exists():
        # whoever makes MLflow's file says where its artifacts lie: not in a worktree
        command = [sys.executable, "-m", "tasks.record.pipeline_run", "mend"]
        subprocess.run(command, cwd=root, env=child_environment(), capture_output=True, check=False)
    if not ref and (left := changes(root)):
        get_run_logger().warning("not committed, so not in this run: %s", console.abbreviated(left))
    trees = Worktrees(root, [root / PLACE / "tree"], [(data.root, data.source)], commit, linked=not pointers)
    (folder,) = trees.paths
    remove_others(folder, asked.model_dump())
    if pointers:
        _bring(folder, pointers, pull)
    (folder / "params.yaml").write_bytes(params.read_bytes())
    told = {"MLFLOW_TRACKING_URI": tracking_uri(), HOME: str(root)}
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        with contextlib.chdir(folder):
            yield folder
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _pointers(listed: str, data: str) -> list[str]:
    """The .dvc files of a commit that say what raw data it has; none where they are in no version."""
    names = [line.partition("\t")[2] for line in listed.splitlines()]
    kept = {name: PurePosixPath(name.removesuffix(".dvc")) for name in names}
    raw = PurePosixPath(os.path.normpath(data))
    return [name for name, place in kept.items() if place.is_relative_to(raw) or raw.is_relative_to(place)]


def _bring(folder: Path, pointers: list[str], pull: bool) -> None:
    """Raw data as the commit has them: what lies in the working copy may be newer, or edited."""
    words = ["pull" if pull else "checkout", "--force", *pointers]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=child_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        said = one_line(without_passwords(done.stderr.strip() or done.stdout))
        mend = "" if pull else " Is it only in the remote? git config thinner.pull true"
        raise UserError(f"{', '.join(pointers)}: the raw data of this commit could not be brought: {said}.{mend}")


def _put_in(params: Path, values: dict[str, Any]) -> None:
    """``values`` in the file, checked as any params.yaml is."""
    for key, value in values.items():
        if "." not in key and isinstance(value, dict):
            first = next(iter(value), "KEY")
            raise UserError(f"set: '{key}' is a section of params.yaml. Name its keys: {key}.{first}")
    try:
        recipes.write(params.parent, values, "set")
    except ParamsError as error:
        raise UserError("\n".join(f"{'set: ' if values else ''}{line}" for line in error.lines)) from None


def _keep(folder: Path, name: str, end: dict[str, Any], values: dict[str, Any], branch: str) -> str:
    """Commit what came out; what became of that, in words. It is no failure of the run where it cannot be."""
    came = f"{end['ship']} is to ship" if end["ship"] else end["verdict"]
    message = f"{name}: {came}\n\n{end['message']}\n\n{_commit_in_words(folder, values)}\n"
    try:
        made = branches.commit(folder, branch, message, RESULTS)
    except UserError as error:
        get_run_logger().warning("nothing was committed to %s: %s", branch, error)
        return f"{branch}: nothing was committed ({error})"
    return f"{branch}, commit {made[:12]}" if made else f"{branch} has these results already"


def _commit_in_words(folder: Path, values: dict[str, Any]) -> str:
    with_ = ", ".join(f"{key}={recipes.flat(value)}" for key, value in values.items())
    changed = "" if values or not changes(folder) else ", with changes that are not committed"
    return f"{head(folder)[:12]}{f' with {with_}' if with_ else changed}"


def _refused(root: Path, name: str, message: str, retry: str) -> messages.Night:
    end = ending.as_json(root, "refused", message, [], whole=False)
    commit = "unknown"
    with contextlib.suppress(UserError):  # it may be git that has refused
        commit = head(root)[:12]
    return messages.Night(name, root, end, commit, retry, page=_page())


def _page() -> str | None:
    """Of this flow's run, in Prefect; a server that ends with the run shows none."""
    page = str(flow_run.ui_url)
    return page if page.startswith("http") else None


def _retry(
    root: Path, stages: list[str] | None, jobs: int, values: dict[str, Any], ref: str | None, commit_to: str | None
) -> str:
    """The command that does the same again: here, or where there is no set-up here, through Prefect."""
    python = root / ".venv" / "bin" / "python"
    if deployment.name and not python.exists():
        given = {"stages": stages, "set": values, "ref": ref, "commit_to": commit_to}
        asked = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
        return messages.command("prefect", "deployment", "run", f"thinner/{deployment.name}",
                                *(word for pair in asked for word in ("--param", pair)))  # fmt: skip
    words = [str(python.relative_to(root)) if python.exists() else "python", "-m", "flows.nightly", *(stages or [])]
    words += ["--jobs", str(jobs)] if jobs != 2 else []
    words += [word for key, value in values.items() for word in ("--set", f"{key}={recipes.flat(value)}")]
    words += ["--ref", ref] if ref else []
    words += ["--commit-to", commit_to] if commit_to else []
    return f"cd {messages.command(str(root))} && {messages.command(*words)}"


def tell(root: Path, night: messages.Night, when: str) -> list[str]:
    """Send the message, if it is one to send; what went wrong, in lines."""
    if not messages.is_worth_it(root, night, when):
        return messages.remember(root, night)
    to = messages.addresses(_of_block)
    wrong = messages.send(to, messages.title(night), messages.text(night), night.went_well) if to else []
    lines = [f"{line}. The run stands as it ended" for line in wrong]
    # what reached nobody is told by the next run
    return [*lines, *messages.remember(root, night, told=len(wrong) < len(to))]


def _of_block() -> str | None:
    if server.has_gone():
        return None
    try:
        block: Any = Secret.load(messages.BLOCK)
    except (ValueError, httpx.HTTPError, PrefectException):  # there is no such block, or nobody to ask
        return None
    return str(block.get())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.nightly", description="A run that nobody watches.")
    parser.add_argument("stages", nargs="*", help="these and what they need; none: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="how many may compute side by side (2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for this run only")
    parser.add_argument("--ref", help="the commit to run; origin/main is fetched first")
    parser.add_argument("--commit-to", metavar="BRANCH", help="where params.yaml, dvc.lock and reports are committed")
    parser.add_argument("--only-new-data", action="store_true", help="nothing, unless raw data have changed")
    parser.add_argument("--settle-seconds", type=float, default=SETTLE_SECONDS, help="they stayed as they are (120)")
    parser.add_argument("--notify", choices=messages.WHEN, default="changes", help="when a message is sent (changes)")
    parser.add_argument("--try-message", action="store_true", help="send a message, run nothing")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs: must be 1 or more")
    try:
        root = repository_root()
        if given.try_message:
            return _try_message(root)
        values = recipes.read_pairs(given.set)
        if given.only_new_data and (why := arrivals.news(root, _look(root, given.ref), given.settle_seconds)):
            console.console.print(why)
            return 0
        server.leave_dead()
        console.take_over()
        with pipeline.stoppable("Stopping. The next run goes on from the last checkpoint."):
            state = server.outlived(
                lambda: nightly(
                    given.stages or None, given.jobs, values, given.ref, given.commit_to, given.only_new_data,
                    given.settle_seconds, given.notify, return_state=True,
                )
            )  # fmt: skip
    except UserError as error:
        console.console.print(str(error), style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        return 130
    well = state.is_completed()
    console.console.print(state.message or state.name, style=None if well else "red", markup=False)
    return server.leave(0 if well else 1)


def _try_message(root: Path) -> int:
    to = messages.addresses()
    messages.check(to)
    wrong = messages.send(to, "thinner: a message to try", f"It comes from {root}. Nothing has run.")
    console.console.print("\n".join(wrong) or f"sent to {len(to)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
