"""Whatever stands in a request to a served model: an answer, or an error that MLflow turns into 400 with its reason."""

from __future__ import annotations

import base64
import io
import types
import warnings
from functools import cache, partial
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from anything import SEEDS, VALUES, ask, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

with warnings.catch_warnings():  # MLflow looks at the class's hints, and would rather see no Any
    warnings.filterwarnings("ignore", "(?s).*Any type hint is inferred", UserWarning)
    from tasks.record import served

NETWORK = NetworkSpec("resnet8", 2, 1, width=4, stem_stride=2)
SPEC = {
    "stage": "prune", "network": NETWORK.as_json(), "classes": ["cat", "dog"], "parents": {}, "data_sha256": "0",
    "preprocessing": {"image_size": 16, "channels": 1, "mean": [0.5], "std": [0.5]},
}  # fmt: skip
SQUARE = {"image_size": 16, "channels": 1, "fit": "crop", "max_pixels": 10_000, "temperature": 1.0}


@cache
def picture(format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("prune")
    checkpoint.save(folder, models.create(NETWORK), SPEC)
    context = types.SimpleNamespace(artifacts={"candidate": str(folder)}, model_config=SQUARE)
    loaded = served.Served()
    loaded.load_context(context)
    return partial(loaded.predict, context)


def refused(read: Any) -> Any:
    """MLflow answers 400 for this error code, with the text; anything else comes with a traceback."""
    try:
        return read()
    except mlflow.exceptions.MlflowException as error:
        if error.get_http_status_code() != 400:
            raise AssertionError(error) from error
        raise


HUGE = base64.b64encode(  # a header that says 100,000 x 100,000 and nothing behind it
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(4)
).decode()
TEXTS = st.sampled_from(["", "a", "====", "iVBORw0KGgo=", "é", "\ud800", "a\nb", HUGE, "A" * 100_000]) | st.text(
    max_size=20
)
IMAGES = TEXTS | VALUES | st.binary(max_size=20) | st.just(base64.b64encode(picture()).decode())


def test_a_picture_is_answered(model: Any) -> None:
    found = model(pd.DataFrame({"image": [base64.b64encode(picture()).decode()]}))
    assert found["label"][0] in SPEC["classes"]


@fuzz()
@given(st.lists(IMAGES, max_size=3), st.sampled_from(["image"] * 4 + ["images", "a\nb"]))
def test_any_value_in_place_of_a_picture(model: Any, values: list[Any], column: str) -> None:
    rows = pd.DataFrame({column: pd.Series(values, dtype=object)})
    ask("served, values", lambda: refused(lambda: model(rows)), mlflow.exceptions.MlflowException)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow tells of what it passes over
@fuzz()
@given(SEEDS, st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
def test_damaged_pictures_of_a_request(model: Any, seed: int, format: str) -> None:
    text = base64.b64encode(damaged(picture(format), seed, 60)).decode()
    rows = pd.DataFrame({"image": [text]})
    ask("served, pictures", lambda: refused(lambda: model(rows)), mlflow.exceptions.MlflowException)
