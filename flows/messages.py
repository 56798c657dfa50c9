"""What a scheduled run says when it has ended: a message for people who are elsewhere (mail, Slack, a webhook: apprise
knows the ways) and a page in Prefect.

The addresses are secrets. They come from the variable THINNER_NOTIFY, or from Prefect's secret block `thinner-notify`;
never from params.yaml or a parameter. No message, log or page names them: what fails is named by its service alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.arrivals import write_whole
from tasks.record.mlflow_client import tracking_uri, without_passwords
from thinner.errors import UserError
from thinner.evidence import candidates, shipping, tradeoff
from thinner.words import duration, with_thousands

VARIABLE, BLOCK = "THINNER_NOTIFY", "thinner-notify"
WHEN = ("always", "changes", "failure", "never")
_TOLD = Path(".thinner") / "told.json"
_KINDS = {True: "success", False: "failure"}  # apprise's
_NONE = f"{VARIABLE} or the block {BLOCK} holds one that apprise does not know. docs/deploy.md has examples"


@dataclass(frozen=True)
class Night:
    """A scheduled run that has ended. ``end``: what `thinner run --json` writes of it."""

    name: str
    folder: Path
    end: Mapping[str, Any]
    commit: str
    retry: str  # the command
    record: str | None = None  # the run in MLflow
    page: str | None = None  # of the flow's run, in Prefect
    branch: str | None = None  # what became of commit_to, in words

    @property
    def went_well(self) -> bool:
        return int(self.end["exit_code"]) == 0

    @property
    def failed_stage(self) -> str | None:
        return next((s["name"] for s in self.end["stages"] if s["state"] in ("failed", "timed out")), None)


# ------------------------------------------------------------------------------------------------ words


def title(night: Night) -> str:
    if night.went_well:
        ships = f"{night.end['ship']} is to ship" if night.end["ship"] else str(night.end["verdict"])
        return f"thinner {night.name}: {ships}"
    stage = night.failed_stage
    return f"thinner {night.name}: " + (f"{stage} failed" if stage else f"{night.end['verdict']}, no stage ran")


def text(night: Night) -> str:
    """The message, for any screen."""
    if not night.went_well:
        lines = [f"Stage    {night.failed_stage or 'none: it was refused before'}", f"Reason   {night.end['message']}"]
        return "\n".join([*lines, f"Retry    {night.retry}", *_where(night)])
    claims = [f"{c['outcome']:<10}{c['claim']}" for c in night.end["claims"]]
    parts = [[str(night.end["message"]), *shipping.target_lines(night.end["target"])], claims, [_ran(night)]]
    return "\n\n".join("\n".join(part) for part in [*parts, _where(night)] if part)


def _ran(night: Night) -> str:
    by_state: dict[str, list[str]] = {}
    for stage in night.end["stages"]:
        took = f" {duration(stage['seconds'])}" if stage["seconds"] is not None else ""
        by_state.setdefault(stage["state"], []).append(stage["name"] + took)
    if set(by_state) == {"up to date"}:
        return "Every stage was up to date."
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in by_state.items())


def _where(night: Night) -> list[str]:
    lines = [f"Commit   {night.commit}"]
    if report := night.end["places"].get("report.html"):
        lines.append(f"Report   {socket.gethostname()}:{night.folder / report}")
    if night.branch:
        lines.append(f"Branch   {night.branch}")
    if night.record:
        lines.append(f"MLflow   {_address(night.record) or f'run {night.record} (thinner ui)'}")
    if night.page:
        lines.append(f"Prefect  {night.page}")
    return lines


def _address(run: str) -> str | None:
    """The page of a run on MLflow's server, where there is one."""
    uri = without_passwords(tracking_uri(), "")
    return f"{uri.rstrip('/')}/#/runs/{run}" if uri.startswith("http") else None


def markdown(night: Night) -> str:
    """The same as a page: for Prefect, with tables, a picture and links."""
    if not night.went_well:
        return f"# {title(night)}\n\n```\n{text(night)}\n```\n"
    parts = [f"# {title(night)}", str(night.end["message"]), *shipping.target_lines(night.end["target"])]
    if night.end["claims"]:
        rows = [(c["outcome"], c["claim"], with_thousands(c.get("numbers") or "")) for c in night.end["claims"]]
        parts.append(_table(("outcome", "claim", "numbers"), rows))
    measured = night.folder / "reports" / "metrics.json"
    if "metrics.json" in night.end["places"]:
        numbers, ship = shipping.read_metrics(measured, complete=True), night.end["ship"] or ""
        shown = candidates.for_end(numbers, ship)
        parts.append(_table(shown.headings, [[cell or "-" for cell in row] for row in shown.rows]))
        picture = base64.b64encode(tradeoff.draw(numbers, ship).encode()).decode()
        parts.append(f"![accuracy and milliseconds](data:image/svg+xml;base64,{picture})")
    parts.append(_ran(night))
    if night.record and (address := _address(night.record)):
        parts.append(f"[This run in MLflow]({address})")
    return "\n\n".join([*parts, "```\n" + "\n".join(_where(night)) + "\n```"]) + "\n"


def _table(headings: Any, rows: Any) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def command(*words: str) -> str:
    """As it is typed."""
    return shlex.join(words)


# ------------------------------------------------------------------------------------------------ sending


def is_worth_it(root: Path, night: Night, when: str) -> bool:
    """Whether it is told; ``when`` is one of WHEN. `changes`: its outcome is another than the last one's of this name
    that was remembered."""
    if when == "changes":
        return bool(_told(root).get(night.name) != _outcome(night))
    return when == "always" or (when == "failure" and not night.went_well)


def _outcome(night: Night) -> str:
    """A hash of verdict, network, claims, targets, and the stage that failed."""
    end = night.end
    what = [end["verdict"], end["ship"], [(c["claim"], c["outcome"]) for c in end["claims"]]]
    what += [[(t["candidate"], t["met"]) for t in end["target"]], night.failed_stage]
    if not night.went_well and night.failed_stage is None:
        what.append(end["message"])
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def remember(root: Path, night: Night, told: bool = True) -> list[str]:
    """How this one ended, for the next `changes`; what went wrong, in lines. Not ``told``: it reached nobody, so the
    next one is news whatever it is."""
    kept = {name: digest for name, digest in _told(root).items() if name != night.name}
    try:
        write_whole(root / _TOLD, kept | ({night.name: _outcome(night)} if told else {}))
    except OSError as error:
        return [f"{_TOLD}: cannot be written ({error.strerror}), so the next run may tell this again"]
    return []


def _told(root: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / _TOLD).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def addresses(block: Any = None) -> list[str]:
    """Of THINNER_NOTIFY, separated by spaces or lines; else of the block. ``block`` gives what that holds, or None."""
    given = os.environ.get(VARIABLE) or (block() if block else None) or ""
    return str(given).split()


def send(to: list[str], subject: str, body: str, went_well: bool = True) -> list[str]:
    """Send a message to each address; returns what went wrong, one line each, in which no address stands."""
    import apprise

    wrong = []
    for number, address in enumerate(to, start=1):
        which = f"address {number} of {len(to)}"
        with _unheard() as said:
            service = apprise.Apprise.instantiate(address)
            sent = service is not None and service.notify(
                title=subject,
                body=body,
                notify_type=apprise.NotifyType(_KINDS[went_well]),
                body_format=apprise.NotifyFormat.TEXT,
            )
        if service is None:
            wrong.append(f"no message to {which}: {_NONE}")
        elif not sent:
            code = re.search(r"error=(\d{3})\b", said.getvalue())
            why = f"it answered HTTP {code[1]}" if code else "it did not answer, or refused"
            wrong.append(f"no message to {which} ({service.service_name}): {why}")
    return wrong


def check(to: list[str]) -> None:
    """Raise UserError where one of the addresses is none, or nobody is named."""
    import apprise

    if not to:
        raise UserError(f"{VARIABLE} is not set. For example: export {VARIABLE}=json://127.0.0.1:8080/hook")
    for number, address in enumerate(to, start=1):
        with _unheard():
            known = apprise.Apprise.instantiate(address) is not None
        if not known:
            raise UserError(f"address {number} of {len(to)}: {_NONE}")


@contextlib.contextmanager
def _unheard() -> Iterator[io.StringIO]:
    """What apprise logs, which may name an address, and is nobody else hears; and urllib3, which tells paths."""
    said = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.StreamHandler(said)], False
        logger.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
