"""flows/messages.py: what is said of a scheduled run, to whom, and what never is."""

import base64
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import messages
from flows.messages import Night
from tests.hooks import Hook, webhook
from tests.servers import free_port
from tests.toy import PROJECT
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # apprise asks for it

CLAIMS = [
    {"claim": "prune beats small on accuracy", "outcome": "proven", "numbers": "+7.57 points"},
    {"claim": "prune has at most 50 % of the MACs of distill", "outcome": "refuted", "numbers": "61 % | exact"},
]
TARGETS = [{"candidate": "prune", "met": True, "lines": ["Target met: prune has 1,460,704 MACs."]}]
STAGES = [
    {"name": "prepare", "state": "up to date", "seconds": None, "made": ""},
    {"name": "prune", "state": "ran", "seconds": 125.0, "made": ""},
]
END: dict[str, Any] = {
    "verdict": "to ship", "exit_code": 0, "message": "To ship: prune (1 of 2 claims proven).", "ship": "prune",
    "target": TARGETS, "claims": CLAIMS, "stages": STAGES, "places": {"report.html": "reports/report.html"},
}  # fmt: skip
GOOD = Night("nightly", Path("/srv/job"), END, "0123456789ab", "cd /srv/job && make run", record="f00")
FAILED = replace(
    GOOD,
    end=END | {"verdict": "failed", "exit_code": 1, "message": "prune failed after 3 s: no disk", "ship": None,
               "stages": [STAGES[0], STAGES[1] | {"state": "failed"}], "claims": [], "target": [], "places": {}},
)  # fmt: skip


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as made:
        yield made


def test_success_says_verdicts_target_network_and_where_the_report_is() -> None:
    said = messages.text(GOOD)
    assert messages.title(GOOD) == "thinner nightly: prune is to ship"
    for line in (
        "To ship: prune (1 of 2 claims proven).",
        "Target met: prune has 1,460,704 MACs.",
        "proven    prune beats small on accuracy",
        "refuted   prune has at most 50 % of the MACs of distill",
        "up to date: prepare; ran: prune 2 min 05 s",
        "Commit   0123456789ab",
        "MLflow   run f00 (thinner ui)",
    ):
        assert line in said.splitlines()
    assert any(
        line.startswith("Report   ") and line.endswith(":/srv/job/reports/report.html") for line in said.splitlines()
    )


def test_failure_says_stage_reason_and_how_to_retry() -> None:
    assert messages.title(FAILED) == "thinner nightly: prune failed"
    assert messages.text(FAILED).splitlines()[:3] == [
        "Stage    prune",
        "Reason   prune failed after 3 s: no disk",
        "Retry    cd /srv/job && make run",
    ]


def test_mlflows_page_is_linked_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hidden@mlflow.example/")
    for said in (messages.text(GOOD), messages.markdown(GOOD)):
        assert "https://mlflow.example/#/runs/f00" in said and "hidden" not in said


def test_the_page_has_the_candidates_of_a_real_run_and_tables_that_hold() -> None:
    numbers = json.loads((PROJECT / "reports" / "metrics.json").read_text())
    places = {"metrics.json": "reports/metrics.json"}
    page = messages.markdown(replace(GOOD, folder=PROJECT, end=END | {"places": places}))
    assert "| refuted | prune has at most 50 % of the MACs of distill | 61 % \\| exact |" in page
    row = next(line for line in page.splitlines() if line.startswith("| finetune |"))
    assert f"{100 * numbers['finetune']['accuracy']:.1f} %" in row
    coded = re.search(r"!\[accuracy and milliseconds]\(data:image/svg\+xml;base64,([\w+/=]+)\)", page)
    assert coded is not None
    picture = base64.b64decode(coded[1]).decode()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.partition("| network |")[2].splitlines()[2:]]
    shown = rows[: rows.index("")]
    assert {"finetune", "prune"} < set(shown)
    assert [name for name in shown if f">{name}</text>" not in picture] == []


def test_a_message_is_sent_to_each_address(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINNER_NOTIFY", f"{hook.address}\n {hook.address}")
    assert messages.send(messages.addresses(), messages.title(FAILED), messages.text(FAILED), went_well=False) == []
    first, second = hook.got
    assert first == second
    assert (first["title"], first["type"]) == ("thinner nightly: prune failed", "failure")
    assert first["message"] == messages.text(FAILED)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("500", r"no message to address 1 of 1 \(JSON\): it answered HTTP 500$"),
        ("gone", r"no message to address 1 of 1 \(JSON\): it did not answer, or refused$"),
        ("wrong", r"no message to address 1 of 1: THINNER_NOTIFY or the block thinner-notify holds one that apprise"),
    ],
)
def test_a_message_that_cannot_be_sent_is_one_line_that_names_no_address(
    hook: Hook, how: str, line: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hook.status = 500
    address = {
        "500": hook.address,
        "gone": f"json://127.0.0.1:{free_port()}/{hook.secret}",
        "wrong": f"nosuch://{hook.secret}",
    }[how]
    caplog.set_level(logging.DEBUG)
    (said,) = messages.send([address], "a", "b")
    assert re.match(line, said)
    assert hook.secret not in said + caplog.text + "".join(capfd.readouterr())


def test_addresses_come_from_the_variable_and_else_from_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINNER_NOTIFY", raising=False)
    assert messages.addresses() == messages.addresses(lambda: None) == []
    assert messages.addresses(lambda: "json://a json://b") == ["json://a", "json://b"]
    monkeypatch.setenv("THINNER_NOTIFY", "json://c")
    assert messages.addresses(lambda: "json://a") == ["json://c"]
    with pytest.raises(UserError, match=r"^THINNER_NOTIFY is not set\. For example: export THINNER_NOTIFY=json://"):
        messages.check([])
    with pytest.raises(UserError, match=r"^address 2 of 2: .* that apprise does not know") as refused:
        messages.check(["json://127.0.0.1", "nosuch://hidden"])
    assert "hidden" not in str(refused.value)


def test_when_it_is_told(tmp_path: Path) -> None:
    other = replace(GOOD, end=END | {"claims": [CLAIMS[0], CLAIMS[1] | {"outcome": "proven"}]})
    longer = replace(GOOD, end=END | {"stages": [], "message": "in other words"})
    later = replace(FAILED, end=FAILED.end | {"message": "prune failed after 4 s: no disk"})

    def ask(night: messages.Night, when: str) -> bool:
        worth = messages.is_worth_it(tmp_path, night, when)
        assert (
            messages.is_worth_it(tmp_path, night, when) is worth
        )  # asking changes nothing: it may die before it tells
        assert messages.remember(tmp_path, night) == []
        return worth

    told = [ask(n, "changes") for n in (GOOD, longer, other, FAILED, later, GOOD)]
    assert told == [True, False, True, True, False, True]
    assert ask(replace(GOOD, name="on-new-data"), "changes")  # another one's memory
    assert [ask(n, "failure") for n in (GOOD, FAILED)] == [False, True]
    assert [ask(n, "always") for n in (GOOD, GOOD)] == [True, True]
    assert not ask(FAILED, "never")
    (tmp_path / ".thinner" / "told.json").write_text("[cut off")
    assert ask(GOOD, "changes")
    # what reached nobody is told by the next run, whatever that is
    assert messages.remember(tmp_path, FAILED, told=False) == []
    assert messages.is_worth_it(tmp_path, GOOD, "changes") and messages.is_worth_it(tmp_path, FAILED, "changes")


def test_a_disk_that_takes_nothing_ends_no_message(tmp_path: Path) -> None:
    (tmp_path / ".thinner").write_text("a file where a folder should be")
    assert messages.is_worth_it(tmp_path, FAILED, "changes")
    (line,) = messages.remember(tmp_path, FAILED)
    assert re.match(r"\.thinner/told\.json: cannot be written \(.+\), so the next run may tell this again", line)
