"""Order: what runs after what, conducted by Prefect.

Prefect reads its settings once, when it is first imported, so they are put into the environment here, which
is imported before any `import prefect` in this package.
"""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from flows.prefect_settings import tell_of_wrong_ones
from tasks.environment import set_environment
from tasks.processes import url_of

tell_of_wrong_ones()
ROOT = Path(__file__).resolve().parent.parent

OWN_SERVER = "THINNER_OWN_SERVER"  # "yes": the server that is set does not answer, see flows.pipeline

_shared = "PREFECT_API_URL" in os.environ
_own = "PREFECT_HOME" not in os.environ and not _shared and OWN_SERVER not in os.environ
# Two servers on one SQLite file lock each other out, so while `make ui` or `make serve` runs, theirs is used.
if _own and (_url := url_of(ROOT / ".thinner" / "prefect-server.json")):
    os.environ["PREFECT_API_URL"] = f"{_url}/api"
    os.environ["PREFECT_HOME"] = str(ROOT / ".prefect")  # it is ours, and no server that somebody shares

set_environment(root=ROOT)


def _secret(file: Path) -> str:
    """What every Prefect server that we start asks for: one for each working copy, readable by its owner alone.

    It stays the same over starts, so that a browser that was told it once goes on. Where it cannot be kept, this
    process and those that it starts have one of their own.
    """
    made = f"thinner:{secrets.token_urlsafe(24)}"
    try:
        file.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as new:  # 0600
            new.write(made)
            new.flush()
            with contextlib.suppress(FileExistsError):  # whole at once, and never over another's
                os.link(new.name, file)
        return file.read_text()
    except OSError:
        return made


def _is_shared() -> bool:
    """Whether the person has a Prefect server of their own, whose rules are theirs."""
    if _shared:
        return True
    with contextlib.suppress(OSError):
        return "PREFECT_API_URL" in (Path(os.environ["PREFECT_HOME"]) / "profiles.toml").read_text()
    return False


# Without it any page in a browser on this machine could have the worker run a command: Prefect answers every origin
# and every host. Clients, workers and flows that we start get it through their environment.
if not _is_shared() and "PREFECT_API_AUTH_STRING" not in os.environ:
    SECRET_FILE = ROOT / ".thinner" / "prefect-secret"
    os.environ["PREFECT_API_AUTH_STRING"] = _secret(SECRET_FILE)
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"]
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "http://127.0.0.1:4200")

# What Prefect says of itself on the console; a person's own PREFECT_LOGGING_LEVEL wins.
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
# A first start creates the database, which on a slow disk takes longer than Prefect's 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
