"""A candidate behind HTTP: the code that MLflow copies into every model it records ("models from code", no pickle).

    request    {"dataframe_records": [{"image": "iVBORw0KGgo..."}]}      a picture's file (PNG, JPEG, ...) in base64
    answer     {"predictions": [{"label": "Ankle boot", "confidence": 0.98}]}

A picture, whatever its size, goes through the same decoding and preprocessing as the pictures of the test split.
It runs apart from the repository: all that it imports of ours is `thinner`, of which the model holds a copy.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from scipy.special import softmax

from thinner.data import sources, store
from thinner.errors import one_line
from thinner.predict import Candidate, open_candidate, predict_logits

BATCH = 64  # bounds memory, however many pictures a request has


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]  # MLflow does not say what it is
    """The artifact ``candidate`` is the folder that a stage wrote; ``model_config`` says how a picture becomes a
    square: image_size (px), channels, fit, max_pixels; and the temperature that divides logits."""

    candidate: Candidate

    def load_context(self, context: Any) -> None:
        self.candidate = open_candidate(Path(context.artifacts["candidate"]), threads=1)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        texts = model_input["image"].tolist() if "image" in model_input else []
        if not texts:
            raise _refused('there is no picture in it. Send {"dataframe_records": [{"image": "iVBORw0KGgo..."}]}')
        images = [_decode(number, text, context.model_config) for number, text in enumerate(texts)]
        logits = predict_logits(self.candidate, np.stack(images), np.arange(len(images)), BATCH)
        classes = self.candidate.spec["classes"]
        scaled = logits.astype(np.float64) / context.model_config["temperature"]
        return pd.DataFrame(
            {"label": [classes[k] for k in logits.argmax(axis=1)], "confidence": softmax(scaled, axis=1).max(axis=1)}
        )


def _decode(number: int, text: Any, square: dict[str, Any]) -> Any:
    try:
        if not isinstance(text, str | bytes):
            raise TypeError(f"it is {one_line(repr(text), 60)}")
        file = io.BytesIO(base64.b64decode(text, validate=True))
        return store.decode(
            lambda: sources.open_picture(file),
            square["image_size"], square["channels"], square["fit"], square["max_pixels"],
        )  # fmt: skip
    except (ValueError, TypeError, store.UnreadableError) as error:  # base64 has ValueErrors
        raise _refused(
            f"image {number}: not a picture's file in base64 ({one_line(error)}). "
            "Make the text with: base64 -w0 picture.png"
        ) from error


def _refused(why: str) -> Any:
    """What MLflow answers with 400 and the text."""
    return mlflow.exceptions.MlflowException.invalid_parameter_value(why)


mlflow.models.set_model(Served())
