"""flows/arrivals.py: whether raw data have changed since a run that they started."""

import os
import re
import time
from pathlib import Path

import pytest

from flows import arrivals
from tests.toy import PROJECT
from thinner.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data/raw/cat").mkdir(parents=True)
    (tmp_path / "data/raw/cat/1.png").write_bytes(b"one")
    return tmp_path


def digest(root: Path) -> str:
    return arrivals.look(root, "data/raw").digest


def test_what_changes_is_seen_and_what_does_not_is_not(root: Path) -> None:
    seen = [digest(root)]
    assert digest(root) == seen[0]
    (root / "data/raw/cat/1.png").chmod(0o600)  # a backup, another owner: the same pictures
    assert digest(root) == seen[0]

    def now_differs() -> None:
        seen.append(digest(root))
        assert len(set(seen)) == len(seen)

    (root / "data/raw/dog").mkdir()
    (root / "data/raw/dog/2.png").write_bytes(b"two")
    now_differs()
    (root / "data/raw/cat/1.png").rename(root / "data/raw/dog/1.png")  # another label
    now_differs()
    (root / "data/raw/dog/2.png").write_bytes(b"too")
    os.utime(root / "data/raw/dog/2.png", (1, 1))
    now_differs()
    (root / "data/raw.dvc").write_text("outs: md5 1")  # git pull has brought another version
    now_differs()
    (root / "data/raw.dvc").write_text("outs: md5 2")
    now_differs()
    (root / "data/raw/dog/2.png").unlink()
    now_differs()
    assert arrivals.look(root, "data/raw", "pointers of a commit").digest not in seen


def test_what_prepare_itself_brings_is_no_news(root: Path) -> None:
    before = digest(root)
    (root / "data/raw/torchvision/MNIST").mkdir(parents=True)
    (root / "data/raw/torchvision/MNIST/images").write_bytes(b"downloaded")
    assert "data/raw/torchvision" in (PROJECT / ".dvcignore").read_text().splitlines()
    assert digest(root) == before


def test_links_in_a_circle_links_to_nothing_and_no_folder_end(root: Path) -> None:
    (root / "data/raw/loop").symlink_to(root / "data/raw")
    (root / "data/raw/gone.png").symlink_to("nowhere")
    assert arrivals.look(root, "data/raw").files == 1
    assert arrivals.look(root, "data/none").files == 0


def test_the_first_look_remembers_then_a_change_that_has_settled_is_news_until_it_is_remembered(root: Path) -> None:
    def news(settle: float = 0) -> str | None:
        return arrivals.news(root, arrivals.look(root, "data/raw"), settle)

    assert news() == "first look: 1 file. The next change to them starts a run"
    assert news() == "nothing new: 1 file, as last time"
    (root / "data/raw/cat/2.png").write_bytes(b"half of")
    said = news(settle=100)
    assert said is not None
    assert re.match("still coming in: last changed [0-9]+ s ago, and a run waits for 100 s", said)
    assert news() is None
    assert news() is None  # a run that was killed has remembered nothing
    arrivals.remember(root, arrivals.look(root, "data/raw"))
    assert news() == "nothing new: 2 files, as last time"


def test_a_file_with_an_old_date_that_has_just_come_is_still_coming_in(root: Path) -> None:
    before = time.time() - 1  # the file system's clock ticks less often than Python's
    (root / "data/raw/cat/2.png").write_bytes(b"copied by rsync --times")
    os.utime(root / "data/raw/cat/2.png", (1, 1))
    assert before <= arrivals.look(root, "data/raw").changed <= time.time() + 1


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"digest"'])
def test_a_damaged_memory_is_a_first_look(root: Path, damage: str) -> None:
    (root / ".thinner").mkdir()
    (root / ".thinner/seen.json").write_text(damage)
    said = arrivals.news(root, arrivals.look(root, "data/raw"), 0)
    assert said is not None
    assert said.startswith("first look")


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(root: Path) -> None:
    arrivals.write_whole(root / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        arrivals.write_whole(root / "x.json", {"a": object()})
    assert (root / "x.json").read_text() == '{"a": 1}'
    assert not list(root.glob(".partial-*"))


def test_a_link_that_leads_to_itself_is_named(root: Path) -> None:
    (root / "data/raw/loop").symlink_to("loop")
    with pytest.raises(
        UserError, match=r"data/raw/loop: cannot be looked at \(Too many levels .*\)\. Make it readable"
    ):
        digest(root)


def test_dates_in_the_future_settle_by_how_long_they_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was set back, or a file server's runs ahead."""
    arrivals.remember(root, arrivals.look(root, "data/raw"))
    now = time.time()

    def news(later: float) -> str | None:
        monkeypatch.setattr(arrivals.time, "time", lambda: now - 10**6 + later)
        return arrivals.news(root, arrivals.look(root, "data/raw"), 100)

    (root / "data/raw/cat/2.png").write_bytes(b"first half")
    assert news(0) == "still coming in: last changed 0 s ago, and a run waits for 100 s"
    assert news(60) == "still coming in: last changed 60 s ago, and a run waits for 100 s"
    (root / "data/raw/cat/2.png").write_bytes(b"first half, second half")
    assert news(110) == "still coming in: last changed 0 s ago, and a run waits for 100 s"
    assert news(211) is None
