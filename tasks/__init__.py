"""Side effects: a program for each stage, and what speaks to DVC and MLflow.

OpenMP and cuBLAS read their variables when torch is imported, so those are set before any module here imports it: a
stage that ``dvc repro`` starts is then like one that the flow starts.
"""

import os

from tasks.machine import TORCH

for _name, _value in TORCH.items():
    os.environ.setdefault(_name, _value)
