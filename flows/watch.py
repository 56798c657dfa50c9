"""The end of Prefect's embedded server when the flow that started it is gone, however that ended.

    python -m flows.watch MARK      # waits for the end of its standard input, which only the flow holds open

The server outlives a flow that dies by a signal, and would keep the terminal's pipe open. Asking whether the flow's
process id is there would not do: a zombie still has one. The server is known by MARK in its environment and not by its
process id, so it is found even if it had only just been started.
"""

from __future__ import annotations

import contextlib
import sys

import psutil

MARK = "THINNER_SERVER_OF"  # in the environment of the flow and of what it starts
PROGRAM = "prefect.server.api.server:create_app"
_GRACE_SECONDS = 10.0


def main() -> None:
    sys.stdin.read()
    servers = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(PROGRAM in word for word in process.cmdline()) and process.environ().get(MARK) == sys.argv[1]:
                process.terminate()
                servers.append(process)
    for process in psutil.wait_procs(servers, _GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    main()
