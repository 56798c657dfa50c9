"""Few pictures of few classes, cut out of a folder of many: what studies/photos.yaml is about.

    python -m benchmarks.photos                      # data/cifar10 -> data/photos
    python -m benchmarks.photos --data FOLDER --out FOLDER

``--data`` is a folder train/CLASS/*.jpg, test/CLASS/*.jpg with the four classes. The first pictures by name are taken:
300 of each class with their labels, 500 more without, and 100 for the test. Files are copied; what is there stays.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from pathlib import Path

from thinner.errors import UserError
from thinner.files import whole

CLASSES = ("airplane", "bird", "cat", "truck")
LABELLED, UNLABELLED, TEST = 300, 500, 100  # of each class


def pick(data: Path, out: Path) -> int:
    """Copy the pictures; returns how many lie there. Raises UserError where ``data`` has too few."""
    copies: dict[Path, Path] = {}
    for name in CLASSES:
        for part, least in (("train", LABELLED + UNLABELLED), ("test", TEST)):
            files = sorted((data / part / name).glob("*.jpg"))
            if len(files) < least:
                raise UserError(
                    f"{data / part / name}: {len(files)} pictures (*.jpg), {least} are needed. --data is a folder "
                    "train/CLASS, test/CLASS of CIFAR-10's pictures"
                )
            for number, file in enumerate(files[:least]):
                with_label = part == "test" or number < LABELLED
                # without a label the class is not in the name either
                place = Path(part, name) if with_label else Path("unlabelled", str(CLASSES.index(name)))
                copies[file] = out / place / file.name
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():  # whole.write: or half a picture of a run that was stopped would stay
            whole.write(copy, functools.partial(shutil.copyfile, file))
    return len(copies)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="all pictures")
    parser.add_argument("--out", type=Path, default=Path("data/photos"), help="where the few go")
    chosen = parser.parse_args(arguments)
    try:
        count = pick(chosen.data, chosen.out)
        print(f"{count:,} pictures in {chosen.out}. Next: python -m flows.sweep studies/photos.yaml")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
