"""What the report's words mean, for those who do not know the trade: on the page by the pointer, by the keyboard, and
as a section that is printed too. The page lists those that it uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

# in the order of the page's section: what is compared, what it costs, what it can, what its confidence is worth, proof
TERMS = {
    "candidate": "A network that was measured, or an export of one.",
    "teacher": "What the small network learns from: the large pretrained one after fine-tuning, which is the baseline "
    "as well, unless params.yaml names another.",
    "control": "A network as small as the result, trained as long but on the labels alone: what one has without a "
    "teacher.",
    "distillation": "Training a small network to give the outputs of a large one, its teacher, not only the labels.",
    "pruning": "Cutting channels out of a trained network, and training it on until it has recovered.",
    "parameters": "The numbers of a network that training sets: its weights.",
    "MACs": "Multiply-accumulate operations for one image, of convolutions and matrix products. They count "
    "arithmetic and do not say how long it takes.",
    "ms": "Milliseconds that one batch takes: the median of many rounds in which the candidates took turns.",
    "batch": "Images that are computed together. A larger batch takes longer and is cheaper by the image.",
    "p95": "The time that 95 % of the rounds stayed below.",
    "ONNX": "A file format for networks that many programs run, without Python or PyTorch; here ONNX Runtime.",
    "int8": "Weights and activations in whole numbers of 8 bits instead of 32: a quarter of the size. What it costs in "
    "accuracy is measured.",
    "Pareto front": "The candidates that no other one beats in both things that a chart shows.",
    "accuracy": "The share of the images whose class was named rightly.",
    "points": "Percentage points: from 88 % to 89 % is one.",
    "top-5": "The share of the images whose class was among the five that seemed likeliest.",
    "balanced accuracy": "The accuracy on the images of each class, averaged over classes: rare ones count as much as "
    "frequent ones.",
    "macro-F1": "The harmonic mean of precision and recall, averaged over classes: rare ones count as much as "
    "frequent ones.",
    "worst class": "The class whose images were named rightly least often, and how often that was.",
    "class weights": "Numbers that make an image count the more in training, the rarer its class is.",
    "balanced sampling": "Drawing training images so that every class is seen equally often, however few it has.",
    "logit adjustment": "Adding the logarithm of each class's frequency to the outputs in training, so that later, "
    "without it, rare classes are named as readily as frequent ones.",
    "agreement": "The share of the images for which a candidate names the class that the baseline names, be it right "
    "or wrong.",
    "test images": "Images that nothing was trained or chosen on: they were looked at once, when all was done.",
    "validation images": "Images kept out of training, by which rounds and settings were chosen.",
    "confidence": "The probability that a network gives to the class it names.",
    "calibration": "Whether confidences can be believed: of answers given with 80 %, about 80 % should be right.",
    "ECE": "Expected calibration error: the mean gap between confidence and accuracy. 0 % is best.",
    "NLL": "Negative log-likelihood: minus the logarithm of the probability given to the right class, averaged. Less "
    "is better; being sure and wrong costs most.",
    "Brier": "The squared distance between the probabilities and the truth, averaged. Less is better.",
    "temperature": "One number that divides a network's outputs so that its confidences fit, found on validation "
    "images. It changes no answer.",
    "AURC": "Area under the risk-coverage curve: how many answers are wrong when only the surest are given. Less is "
    "better.",
    "interval": "A range that holds the true value in 95 of 100 repetitions, by other images of the same kind (or by "
    "other rounds of the clock).",
    "p-value": "How likely a result at least this clear would be if the claim were false. Small speaks for the claim.",
    "seed": "The number from which all chance of a training run is drawn; another seed is another run.",
    "proven": "The effect lies beyond what is claimed, and chance is rejected.",
    "refuted": "The effect lies on the other side of what is claimed, and chance is rejected.",
    "not shown": "Undecided: the data do not tell, which is not the same as false.",
}
# other forms of a term, as they stand in headings and sentences
_ALSO = {
    "proven": "Proven",
    "refuted": "Refuted",
    "not shown": "Not shown",
    "confidence": "confidences|confidence",
    "control": "controls|control",
    "interval": "intervals|interval",
    "p-value": "p-values|p-value|p",
    "int8": "int8|8 bits",
    "distillation": "distillation|distilled",
    "points": "points",
    "candidate": "candidates|candidate",
}

_PLAIN = {"parameters"}  # explained where it heads a column; in a sentence it is clear enough


class Glossary:
    """The terms of one page: what is marked is remembered, and `used` are listed at its end."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def term(self, name: str, shown: str | None = None) -> Markup:
        """A word in a sentence: a link to its explanation, which the pointer and the keyboard bring up."""
        self._used.add(name)
        return Markup('<a class="term" href="#{}" title="{}">{}</a>').format(anchor(name), TERMS[name], shown or name)

    def marked(self, text: str) -> Markup:
        """A sentence with each of its terms marked where it stands first."""
        pieces: list[Markup] = []
        seen: set[str] = set()
        at = 0
        for found in _ANY.finditer(text):
            name = _name(found[0])
            if name in seen or name in _PLAIN:
                continue
            seen.add(name)
            pieces += [escape(text[at : found.start()]), self.term(name, found[0])]
            at = found.end()
        return Markup("").join([*pieces, escape(text[at:])])

    def heading(self, text: str) -> Markup:
        """A column's heading, explained by the first of its terms; no link, because a press on it sorts."""
        found = _ANY.search(text)
        if found is None:
            return escape(text)
        name = _name(found[0])
        self._used.add(name)
        return Markup('<abbr title="{}">{}</abbr>').format(TERMS[name], text)

    def used(self) -> Sequence[tuple[str, str, str]]:
        """Anchor, term and explanation of those marked so far."""
        return [(anchor(name), name, text) for name, text in TERMS.items() if name in self._used]


def anchor(name: str) -> str:
    return f"term-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"


def _name(shown: str) -> str:
    return next(name for name in TERMS if re.fullmatch(_ALSO.get(name, re.escape(name)), shown) or name == shown)


_ANY = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(f"{_ALSO.get(name, re.escape(name))}|{re.escape(name)}" for name in TERMS)
    + r")(?![\w-])"
)
