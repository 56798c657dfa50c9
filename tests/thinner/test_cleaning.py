"""thinner/data/cleaning.py: a person's corrections, and near-duplicates in one split."""

import re
from pathlib import Path

import numpy as np
import pytest

from thinner.data import cleaning
from thinner.data.cleaning import Change, Correction
from thinner.data.sources import DataError, Listing, Part

CLASSES = ("cat", "dog", "=1+1")


def listing(labels: list[int], parts: list[int] | None = None, names: list[str] | None = None) -> Listing:
    named = names or [f"{i}.png" for i in range(len(labels))]
    return Listing(
        CLASSES,
        np.array(labels, dtype=np.int64),
        np.array(parts or [0] * len(labels), dtype=np.int8),
        named.__getitem__,
        lambda i: pytest.fail("no picture is read"),
        "folder photos",
    )


def test_what_is_written_is_read_again_and_no_spreadsheet_computes_it(tmp_path: Path) -> None:
    rows = [Correction("a, b.png", "cat", "=1+1"), Correction("-c.png", "dog", "cat")]
    cleaning.write(tmp_path / "c.csv", rows)
    assert (tmp_path / "c.csv").read_text() == "file,given,label\n\"a, b.png\",cat,'=1+1\n'-c.png,dog,cat\n"
    found = cleaning.read(tmp_path / "c.csv")
    assert [(row.file, row.given, row.label) for row in found] == [(row.file, row.given, row.label) for row in rows]
    assert found[1].where.endswith("c.csv line 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column file and given and label; its columns are: none. Start from reports/suspects.csv"),
        (b"file,given\n", "no column label; its columns are: file, given"),
        (b"file,given,label\na,cat,\n", "c.csv line 2: no label. Fill it in, or remove the line"),
        (b"file,given,label\na\n", "c.csv line 2: no given"),
        (b"file,given,label\n\xff,cat,dog\n", "c.csv: not UTF-8 with commas"),
    ],
)
def test_files_that_are_no_corrections(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        cleaning.read(tmp_path / "c.csv")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no.csv: no such file"):
        cleaning.read(tmp_path / "no.csv")
    with pytest.raises(DataError, match="cannot be read"):
        cleaning.read(tmp_path)


def test_labels_are_corrected_and_the_source_stays_as_it_is() -> None:
    source = listing([0, 1, 0, -1, 2])
    right = cleaning.relabelled(source, [Correction("2.png", "cat", "=1+1"), Correction("1.png", "dog", "cat")])
    assert right.tolist() == [0, 0, 2, -1, 2]
    assert source.labels.tolist() == [0, 1, 0, -1, 2]


def test_names_are_found_as_they_are_typed_where_that_is_one() -> None:
    spelt = ("cafe\u0301", "dog ", " dog")  # two that nobody tells apart
    source = Listing(
        spelt, np.array([0, 0, 1]), np.zeros(3, np.int8), ["cafe\u0301/1.png", " 2.png", "3.png"].__getitem__,
        lambda i: pytest.fail("no picture is read"), "folder photos",
    )  # fmt: skip
    rows = [Correction("caf\u00e9/1.png", "caf\u00e9", "dog "), Correction("2.png", "caf\u00e9", " dog")]
    assert cleaning.relabelled(source, rows).tolist() == [1, 2, 1]
    with pytest.raises(DataError, match="unknown class 'dog'"):
        cleaning.relabelled(source, [Correction("3.png", "dog ", "dog")])


def test_what_was_typed_once_is_the_same_when_it_is_shown_again() -> None:
    source = Listing(
        ("cafe\u0301", "dog"), np.array([1, 1]), np.zeros(2, np.int8), ["e\u0301.png", "2.png"].__getitem__,
        lambda i: pytest.fail("no picture is read"), "folder photos",
    )  # fmt: skip
    first, changes = cleaning.merged(source, [], [Correction("\u00e9.png", "dog", "caf\u00e9")])
    assert [(one.file, one.label) for one in first] == [("e\u0301.png", "cafe\u0301")] and len(changes) == 1
    again, changes = cleaning.merged(source, first, [Correction("e\u0301.png", "cafe\u0301", "caf\u00e9")])
    assert again == first and not changes
    back, changes = cleaning.merged(source, first, [Correction("\u00e9.png", "caf\u00e9", "dog")])
    assert not back and len(changes) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("9.png", "cat", "dog"), "'9.png' is no picture of folder photos. Remove the line"),
        (("0.png", "cat", "dgo"), "unknown class 'dgo'. Choose one of: cat, dog, =1+1"),
        (("0.png", "dog", "cat"), "'0.png' is labelled 'cat' in the source now, not 'dog'. Remove the line, or look"),
        (("0.png", "bird", "cat"), "'0.png' is labelled 'cat' in the source now, not 'bird'"),
        (("2.png", "cat", "dog"), "'2.png' has no label in the source"),
        (("1.png", "dog", "cat"), "'1.png' is 'cat' here and '=1+1' in labels.csv line 2. Keep one"),
    ],
)
def test_a_row_that_does_not_fit_is_one_line(row: tuple[str, str, str], message: str) -> None:
    rows = [Correction("1.png", "dog", "=1+1", "labels.csv line 2"), Correction(*row, "labels.csv line 3")]
    with pytest.raises(DataError) as caught:
        cleaning.relabelled(listing([0, 1, -1]), rows)
    assert str(caught.value).startswith(f"labels.csv line 3: {message}") and "\n" not in str(caught.value)


def test_many_wrong_rows_are_many_lines_but_not_endless_ones() -> None:
    rows = [Correction(f"x{i}.png", "cat", "dog", f"line {i}") for i in range(30)]
    with pytest.raises(DataError) as caught:
        cleaning.relabelled(listing([0, 1]), rows)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 10 more"


def test_a_picture_that_a_csv_lists_twice_is_corrected_twice() -> None:
    source = listing([0, 0, 1], names=["a.png", "a.png", "b.png"])
    assert cleaning.relabelled(source, [Correction("a.png", "cat", "dog")]).tolist() == [1, 1, 1]
    torn = listing([0, 1, 1], names=["a.png", "a.png", "b.png"])
    with pytest.raises(DataError, match="is labelled 'cat' and 'dog' in the source now, not 'cat'"):
        cleaning.relabelled(torn, [Correction("a.png", "cat", "dog")])


def test_a_second_look_adds_to_the_first_changes_it_and_takes_it_back() -> None:
    source = listing([0, 1, 0, 1])
    first, changes = cleaning.merged(
        source,
        [],
        [Correction("0.png", "cat", "dog"), Correction("1.png", "dog", "dog"), Correction("2.png", "cat", "dog")],
    )
    assert [(one.file, one.given, one.label) for one in first] == [("0.png", "cat", "dog"), ("2.png", "cat", "dog")]
    assert changes == [Change("0.png", "cat", "dog"), Change("2.png", "cat", "dog")]
    # the person sees the corrected labels now
    second, changes = cleaning.merged(
        source,
        first,
        [Correction("0.png", "dog", "=1+1"), Correction("2.png", "dog", "cat"), Correction("3.png", "dog", "cat")],
    )
    assert [(one.file, one.given, one.label) for one in second] == [("0.png", "cat", "=1+1"), ("3.png", "dog", "cat")]
    assert changes == [Change("0.png", "dog", "=1+1"), Change("2.png", "dog", "cat"), Change("3.png", "dog", "cat")]
    with pytest.raises(DataError, match=r"'0.png' is corrected to 'dog' already, not 'cat'"):
        cleaning.merged(source, first, [Correction("0.png", "cat", "=1+1")])


SPLITS = {"labelled": [0, 1], "unlabelled": [2, 3], "validation": [4, 5], "test": [6, 7]}


def one_split(
    joined: list[list[int]], parts: list[Part]
) -> tuple[dict[str, list[int]], dict[int, str], dict[int, str]]:
    group = np.arange(9)
    for members in joined:
        group[members] = members[0]
    splits = {name: np.array(rows) for name, rows in SPLITS.items()}
    found, moved, dropped = cleaning.in_one_split(splits, group, np.array(parts, dtype=np.int8))
    return {name: rows.tolist() for name, rows in found.items()}, moved, dropped


DRAWN = [Part.TRAIN] * 9
OWN_TEST = [*[Part.TRAIN] * 6, Part.TEST, Part.TEST, Part.TRAIN]
OWN_BOTH = [*[Part.TRAIN] * 4, Part.VALIDATION, Part.VALIDATION, Part.TEST, Part.TEST, Part.TRAIN]


@pytest.mark.parametrize(
    ("joined", "parts", "expected", "moved", "dropped"),
    [
        ([], DRAWN, {}, [], []),
        ([[0, 2, 8]], DRAWN, {}, [], []),  # both are trained on; a picture in no split concerns nobody
        ([[0, 4, 6]], DRAWN, {"labelled": [0, 1, 4, 6], "validation": [5], "test": [7]}, [4, 6], []),
        ([[2, 5]], DRAWN, {"unlabelled": [2, 3, 5], "validation": [4]}, [5], []),
        ([[4, 6]], DRAWN, {"validation": [4, 5, 6], "test": [7]}, [6], []),
        ([[0, 6]], OWN_TEST, {"labelled": [1]}, [], [0]),
        ([[2, 4, 6, 7]], OWN_TEST, {"unlabelled": [3], "validation": [5]}, [], [2, 4]),
        ([[1, 5]], OWN_TEST, {"labelled": [0, 1, 5], "validation": [4]}, [5], []),
        ([[0, 4], [5, 6]], OWN_BOTH, {"labelled": [1], "validation": [4]}, [], [0, 5]),
    ],
)
def test_near_duplicates_in_one_split(joined, parts, expected, moved, dropped) -> None:
    found, went, gone = one_split(joined, parts)
    assert found == SPLITS | expected
    assert sorted(went) == moved and sorted(gone) == dropped


def test_moving_and_dropping_are_told() -> None:
    _, moved, _ = one_split([[0, 4]], DRAWN)
    assert moved == {4: "from validation to labelled"}
    _, _, dropped = one_split([[3, 6]], OWN_TEST)
    assert dropped == {3: "from unlabelled, like a picture of test"}
