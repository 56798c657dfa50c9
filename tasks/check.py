"""`python -m tasks.check`: is params.yaml one that can be run? Says all that is wrong at once and ends with
2. What is not wrong and yet worth knowing is said as notes: other preprocessing than published weights were
trained with, tensors that were taken by their order or left out.

Looks names of networks, weights, losses and criteria up, which needs torch; the flow runs it as a process of
its own, before the first stage, and only when a stage is out of date.

`--layers` lists the layers of finetune's and the student's network instead, for losses that compare layers and for
prune.keep.
"""

import argparse
import sys

from tasks.environment import set_environment
from thinner.config import load_params
from thinner.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.check")
    parser.add_argument("--layers", action="store_true", help="list the layers of both networks instead")
    listing = parser.parse_args().layers
    set_environment()
    try:
        params = load_params(deep=not listing)
        from thinner import checks

        if listing:
            print("\n".join(checks.layers(params)))
            return 0
        remarks = list(checks.remarks(params))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(["params.yaml: nothing wrong", *(f"  note: {line}" for line in remarks)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
