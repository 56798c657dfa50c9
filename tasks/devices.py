"""thinner device add: times of another machine, brought back."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.record import candidates
from thinner.errors import UserError
from thinner.files import whole
from thinner.measure import devices
from thinner.predict import weights_sha256


def add(root: Path, name: str, file: Path) -> devices.Device:
    """Keep the CSV of a bundle's bench.py as reports/devices/NAME.csv, in place of an earlier one of that name.

    Raises UserError where it is no such file, or is of other weights than the present ones.
    """
    devices.check_name(name)
    device = devices.read_device(file, name)
    made = candidates.made(root)
    for candidate, sha256 in device.weights.items():
        if candidate not in made:
            raise UserError(
                f"{file}: has times of {candidate!a}, and there is no such network here. Choose a bundle of this "
                "repository: thinner bundle --bench"
            )
        present = weights_sha256(made[candidate])
        if present != sha256:
            raise UserError(
                f"{file}: is of other weights of {candidate} (SHA-256 {sha256[:12]}) than the present ones "
                f"({present[:12]}). Bundle these and time them again: thinner bundle --bench"
            )
    target = root / devices.FOLDER / f"{name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.write(target, lambda partial: shutil.copyfile(file, partial))
    return device
