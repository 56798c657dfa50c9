"""Prefect's server of one run, started as Prefect starts it (`python -m uvicorn ARGUMENTS`), but that it ends at once.

As of all programs here no garbage is looked for among its million objects: tasks/__init__.py, which `flows` imports.
"""

import runpy

# Kinds of blocks in the database are what a run never asks for. Where Prefect's extras are installed, a server imports
# all of them for that as it starts, which takes longer than all else.
ENVIRONMENT = {
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}

if __name__ == "__main__":
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
