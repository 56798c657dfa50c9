"""Order: what runs after what, conducted by Prefect.

Prefect reads its settings once, when it is first imported, so they are put into the environment here, which
is imported before any `import prefect` in this package.
"""

import contextlib
import json
import os
from pathlib import Path

from tasks.environment import set_environment
from tasks.tracking import is_alive

ROOT = Path(__file__).resolve().parent.parent

if "PREFECT_HOME" not in os.environ and "PREFECT_API_URL" not in os.environ:
    # Two servers on one SQLite file lock each other out, so while `make ui` or `make serve` runs, theirs is
    # used.
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads((ROOT / ".thinner" / "prefect-server.json").read_text())
        if is_alive(note["pid"], note["started"]):
            os.environ["PREFECT_API_URL"] = f"{note['url']}/api"

set_environment(root=ROOT)

# What Prefect says of itself on the console; a person's own PREFECT_LOGGING_LEVEL wins.
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
# A first start creates the database, which on a slow disk takes longer than Prefect's 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
