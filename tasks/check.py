"""`python -m tasks.check`: is params.yaml one that can be run? Says all that is wrong at once and ends with
2.

Looks names of networks, weights, losses and criteria up, which needs torch; the flow runs it as a process of
its own, before the first stage, and only when a stage is out of date.
"""

import sys

from tasks.environment import set_environment
from thinner.config import load_params
from thinner.errors import UserError


def main() -> int:
    set_environment()
    try:
        load_params(deep=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("params.yaml: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
