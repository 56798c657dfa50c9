"""Prefect's server of one run, started as Prefect starts it (`python -m uvicorn ARGUMENTS`), but that it ends at once
and without a word.

As of all programs here no garbage is looked for among its million objects: tasks/__init__.py, which `flows` imports.
"""

import logging
import runpy
from typing import Any

# Kinds of blocks in the database are what a run never asks for. Where Prefect's extras are installed, a server imports
# all of them for that as it starts, which takes longer than all else.
ENVIRONMENT = {
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


def quiet_at_the_end() -> None:
    """Once it is asked to end it logs no more: what that cuts off is no error of the run, and would come with a
    traceback after the run's own last line."""
    from uvicorn import Server

    end = Server.handle_exit

    def handle_exit(self: Server, number: int, frame: Any) -> None:
        logging.disable(logging.CRITICAL)
        end(self, number, frame)

    Server.handle_exit = handle_exit  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    quiet_at_the_end()
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
