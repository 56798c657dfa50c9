"""What came of self-training, in a sentence. The stage says it too: what is imported here trains it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinner.evidence import decision
from thinner.words import interval, percent, points


def self_training_line(found: Mapping[str, Any]) -> str:
    """What came of self-training (``decision.read``), in words that hold whatever the numbers are."""
    plain, learner, control = decision.PLAIN, decision.LEARNER, decision.CONTROL
    right, metric = found["accuracy"], found["metric"].replace("_", " ")
    against = " and ".join(
        f"{points(row['effect'])} points {interval(row['low'], row['high'])} against {name}"
        for name, row in ((plain, found["against"][plain]), ("the control", found["against"][control]))
    )
    told = (
        f"{learner} is right on {percent(right[learner])} of {found['images']:,} validation images, {plain} on "
        f"{percent(right[plain])}, the control (as many steps, labels alone) on {percent(right[control])}; "
        f"{metric} {against}"
    )
    if found["chosen"] == learner:
        return f"Self-training helped: {told}. {learner} is the teacher."
    return f"Self-training was not shown to help: {told}. The plain teacher, {plain}, is kept."
