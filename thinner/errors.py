"""The one exception a person is meant to read, and its kind that several modules raise.

Everything that somebody can mend by editing a file, a key or a command derives from `UserError`.
Its text says what was wrong, the value, and the choices or the next command. The programs in `tasks/`
and `flows/` print it as one message and exit non-zero; anything else keeps its traceback, because it is a bug of ours.
"""


class UserError(Exception):
    """Something a person can mend; `str()` of it is the whole message."""


class DamagedError(UserError):
    """A file is not what was written."""


class NetworkError(UserError):
    """A network or its weights cannot be had as asked."""
