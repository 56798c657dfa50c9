"""A setting that Prefect cannot read ends every program of ours as it imports Prefect: in one line, with the mend."""

import os
import sys
import traceback
from types import TracebackType


def tell_of_wrong_ones() -> None:
    """From now on an error that ends this process and comes from Prefect's settings is a line in place of a traceback;
    any other is shown as before."""
    before = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(trace)]
        if any(module.startswith("prefect.settings") for module in modules):
            print(f"Prefect cannot read its settings: {words(error)}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = shown


def is_shared_database() -> bool:
    """Whether a person has told Prefect's servers of a database, in which others' runs may be as well."""
    told = [os.environ.get(f"PREFECT_{of}_DATABASE_{name}", "") for of in ("API", "SERVER")
            for name in ("CONNECTION_URL", "HOST")]  # fmt: skip
    return any(value and not value.startswith("sqlite") for value in told)


def words(error: BaseException) -> str:
    """Which setting, its value, what is wrong with it and where it may be set."""
    said = " ".join(str(error).split())
    for fault in getattr(error, "errors", list)()[:1]:
        value, what = fault.get("input"), fault["msg"]
        for name, given in os.environ.items():  # Prefect has some in capitals
            if name.startswith("PREFECT_") and given.lower() == str(value).lower():
                return f"{name}={given!r}: {what}. Change it, or unset it"
        said = f"{'.'.join(map(str, fault['loc']))}={value!r}: {what}"
    home = os.environ.get("PREFECT_HOME", "~/.prefect")
    profiles = os.environ.get("PREFECT_PROFILES_PATH", os.path.join(home, "profiles.toml"))
    return f"{said}. It is set in {profiles}, prefect.toml, pyproject.toml or .env: change it there"
