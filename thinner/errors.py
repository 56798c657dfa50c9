"""The one exception a person is meant to read, and its kind that several modules raise.

Everything that somebody can mend by editing a file, a key or a command derives from `UserError`.
Its text says what was wrong, the value, and the choices or the next command. The programs in `tasks/`
and `flows/` print it as one message and exit non-zero; anything else keeps its traceback, because it is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", always: str = "") -> str:
    """What to say of an unknown name: "Did you mean 'kd'?" of the nearest that is ``known``, else ``otherwise``; and
    then what is ``always`` said."""
    near = difflib.get_close_matches(word, list(known), 1)
    return " ".join(filter(None, (f"Did you mean '{near[0]}'?" if near else otherwise, always)))


def one_line(what: object, most: int = 200) -> str:
    """``what`` (another library's error, a value of a file) for the inside of a message: one line, not long, and
    nothing in it that moves a cursor."""
    text = " ".join(str(what).split()) or (type(what).__name__ if isinstance(what, BaseException) else "")
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class UserError(Exception):
    """Something a person can mend; `str()` of it is the whole message."""


class DamagedError(UserError):
    """A file is not what was written."""


class NetworkError(UserError):
    """A network or its weights cannot be had as asked."""
