"""Side effects: a program for each stage, and what speaks to DVC and MLflow.

OpenMP and cuBLAS read their variables when torch is imported, so those are set before any module here imports it: a
stage that ``dvc repro`` starts is then like one that the flow starts.

Importing torch, MLflow and DVC makes a million objects, none of them garbage; looking for garbage 1,700 times meanwhile
took a fifth of the time. Nor is there any as a program ends, when Python looks through all of them several times, for
longer than it took to make them.
"""

import atexit
import gc
import os
import sys

from tasks.machine import TORCH

for _name, _value in TORCH.items():
    os.environ.setdefault(_name, _value)

COLLECT = gc.get_threshold()  # as Python has it, for those that compute
gc.set_threshold(50_000, 50, 100)
atexit.register(gc.freeze)  # first here, so last to be called

if sys.argv[:1] == ["-m"] and "THINNER_FORKS" in os.environ:  # `python -m tasks.NAME` below a flow
    from tasks import forks

    forks.hand_over()
