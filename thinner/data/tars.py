"""Where each file lies in a tar: its name, its first byte and its size, so that one of a million is read alone.

The standard library's `tarfile` reads the headers (ustar, pax, GNU's), one at a time, and none is kept. Nothing is ever
extracted. What a tar can hold beside plain files is refused, because to pass over it would be to lose a picture.
"""

from __future__ import annotations

import posixpath
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from thinner.errors import UserError, one_line

_BLOCK = 512
_COMPRESSED = (  # how such a file begins, how it may be called, and what undoes it
    (b"\x1f\x8b", (".tar.gz", ".tgz"), "gunzip"),
    (b"BZh", (".tar.bz2", ".tbz2"), "bunzip2"),
    (b"\xfd7zXZ", (".tar.xz", ".txz"), "unxz"),
    (b"\x28\xb5\x2f\xfd", (".tar.zst", ".tzst"), "unzstd --rm"),
)
ENDINGS = (".tar", *(ending for _, endings, _ in _COMPRESSED for ending in endings))
# All that tarfile raises on damaged headers, found by changing bytes.
_DAMAGED = (tarfile.TarError, OSError, ValueError, EOFError, LookupError, OverflowError, RecursionError, MemoryError)
_KINDS = {
    tarfile.SYMTYPE: "a link, and none is followed. Pack the file itself: tar --dereference",
    tarfile.LNKTYPE: "a hard link, and none is followed. Pack the file itself: tar --hard-dereference",
    tarfile.CHRTYPE: "a device. Pack without it",
    tarfile.BLKTYPE: "a device. Pack without it",
    tarfile.FIFOTYPE: "a FIFO. Pack without it",
}


class TarError(UserError):
    """A tar that is not read, or a file in it; the message names both and the mend."""


class Entry(NamedTuple):
    """A plain file in a tar: ``size`` bytes from ``offset`` on."""

    name: str
    offset: int
    size: int


def entries(path: Path) -> Iterator[Entry]:
    """The plain files of an uncompressed tar in its order; folders are passed over. Raises TarError.

    Names are as written, but for "./" in them. That a tar was cut off shows at its end, after all that is whole.
    """
    shown = one_line(path.as_posix())
    try:
        with path.open("rb") as file:
            _refuse_compressed(path, file.read(8))
            length = file.seek(0, 2)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # it would keep every header
                    if member.isdir():
                        continue
                    _check(shown, member, tar.offset, length)
                    yield Entry(_plain(member.name), member.offset_data, member.size)
                _check_end(shown, file, tar.offset)
    except _DAMAGED as error:
        why = one_line(error)
        raise TarError(f"'{shown}': is no whole tar ({why}). Copy it here again, or pack it again") from error


def read(path: Path, offset: int, size: int) -> bytes:
    """The bytes of one entry; by a file of its own, so from any thread. Raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError("is cut off: the tar is shorter than it was when it was listed")
    return data


def _refuse_compressed(path: Path, start: bytes) -> None:
    for magic, endings, undo in _COMPRESSED:
        if start.startswith(magic):
            named = path if path.name.lower().endswith(endings) else path.with_name(f"{path.name}{endings[0][4:]}")
            first = "" if named == path else f"mv {shlex.quote(path.as_posix())} {shlex.quote(named.as_posix())} && "
            raise TarError(
                f"'{one_line(path.as_posix())}': is compressed, so no picture in it can be read without all before it "
                f"(and pictures are compressed already). Once: {first}{undo} {shlex.quote(named.as_posix())}"
            )


def _check(shown: str, member: tarfile.TarInfo, following: int, length: int) -> None:
    """Raise TarError unless this is a plain file that lies whole in the tar; ``following`` is where the next begins."""
    name = member.name

    def refuse(what: str) -> TarError:
        return TarError(f"'{shown}': '{one_line(name)}' {what}")

    if not name.isascii() and any("\udc80" <= sign <= "\udcff" for sign in name):
        raise refuse("has a name that is not UTF-8. Rename the file (convmv does so for many) and pack again")
    if name.startswith("/") or ".." in name.split("/"):
        raise refuse("has a name that leads out of the tar. Pack again from inside the folder: tar -C FOLDER -cf ...")
    if member.issparse():
        raise refuse("is sparse: its bytes do not lie in one piece. Pack without --sparse")
    if not member.isreg():
        raise refuse(f"is {_KINDS.get(member.type, f'of a kind that is not read ({member.type!r}). Pack without it')}")
    if member.size < 0 or following != member.offset_data + -(-member.size // _BLOCK) * _BLOCK:
        raise refuse("has a damaged header. Copy the tar here again, or pack it again")
    if member.offset_data + member.size > length:
        raise refuse("is cut off: the tar ends in it. Copy the tar here again, or pack it again")


def _check_end(shown: str, file: BinaryIO, offset: int) -> None:
    """Raise TarError unless only zeros are at ``offset`` and behind it: tarfile takes what it cannot read for the
    end, and passes over what follows the end."""
    file.seek(offset)
    mark = file.read(_BLOCK)
    if mark != bytes(_BLOCK):
        what = "has a damaged header" if len(mark) == _BLOCK else "ends without an end mark, so it was cut off"
        raise TarError(f"'{shown}': {what} at byte {offset:,}. Copy it here again, or pack it again")
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise TarError(
                f"'{shown}': has something behind its end, as two tars in one file have. Keep each as a file of its own"
            )


def _plain(name: str) -> str:
    return posixpath.normpath(name) if name.startswith("./") or "/./" in name or "//" in name else name
