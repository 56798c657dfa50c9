"""A module of ours as a program, as `python -m` has it, but a fork of the tests' process (tests/forked.py): as new, and
without waiting for torch."""

import runpy
import sys

from tasks import forks

forks.hand_over()
if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
