"""quantize: 8 bits that hold. A ladder, climbed only as far as validation asks for: static, mixed, trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
import torch

from tasks import distillation, learning
from tasks.stage import Stage, run_stage
from thinner.compress import quantization
from thinner.compress.fake_quantization import FakeQuantised
from thinner.data import store, views
from thinner.evidence import drop, ladder
from thinner.files import whole
from thinner.files.mapped import read_rows
from thinner.learn import training
from thinner.measure import profiling
from thinner.networks import checkpoint, export
from thinner.params import Params

BATCH = 64  # images at once while ranges are found
_SAME = 0.99  # share of images: roundings that fall the other way are rare, another network is not
_REPEATS, _WARMUP = 20, 3  # of each attempt, timed in the same rounds


def quantize(stage: Stage) -> None:
    section = stage.params.quantize
    if section.candidate is None:
        stage.say("quantize: quantize.rungs is empty, so nothing is quantised")
        _write(stage, None)
        return
    climb = Climb(stage)
    refusal = drop.refusal(section.max_drop, len(climb.validation), "quantize.max_drop")
    for rung in section.rungs:
        for attempt in {"static": climb.static, "mixed": climb.mixed, "trained": climb.trained}[rung]():
            climb.tried.append(attempt)
        if climb.chosen.row["holds"]:
            break
        if refusal:
            climb.say(f"{refusal}. So nothing above {rung} is tried")
            break
    climb.time()
    _write(stage, climb)


Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attempt:
    """A network in 8 bits (or, first, in float) below ``folder``, and its row of ladder.csv."""

    row: ladder.Row
    folder: Path
    logits: Logits  # of the validation images


class Climb:
    """What all rungs share: the network, the images, what the float network says of them, and what was tried."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.section = stage, stage.params.quantize
        self.work = stage.resume / "climb"
        self.data = store.open_store(learning.PREPARED)
        self.source = checkpoint.load(f"data/{self.section.source}")
        self.preprocessing = self.source.preprocessing
        self.validation = self.data.splits["validation"]
        self.labels = np.asarray(self.data.labels[self.validation])
        # ranges are fitted like weights: on what is trained on, and judged on what is not
        pool = learning.training_pool(self.data)
        drawn = np.random.default_rng(stage.params.run.seed).permutation(pool)[: self.section.images]
        self.inputs = self._prepared(np.sort(drawn))
        stage.record.dataset(
            "prepared", self.data.sha256, learning.PREPARED, {k: len(v) for k, v in self.data.splits.items()}
        )
        self.about = {"classes": self.source.spec["classes"], "preprocessing": self.preprocessing.as_json()}
        self.folded = self.work / "folded.onnx"
        self.history: list[training.Row] = []
        self.sensitivity: list[dict[str, Any]] = []
        self.tried: list[Attempt] = []
        self.float = self._float()
        self.layers = quantization.layers_of(self.folded)

    def _float(self) -> Attempt:
        folder, wants = self._folder("float"), self.inputs.shape
        model = folder / "model.onnx"
        opset = self.stage.params.export.opset
        export.export_onnx(self.source.model, model, (wants[1], wants[2], wants[3]), self.about, opset)
        export.check_parity(
            self.source.model, model, self.inputs[:BATCH], instead="leave 8 bits out: quantize.rungs: []"
        )
        quantization.fold(model, self.folded)
        checkpoint.write_spec(folder, self._spec(), model.name)
        logits = self._logits(folder)
        return Attempt(self._row("float", folder, logits, logits), folder, logits)

    def say(self, text: str) -> None:
        self.stage.say(f"quantize: {text}")

    # --- the rungs ---

    def static(self) -> Iterator[Attempt]:
        """All of it in 8 bits; the ranges of each method in turn."""
        found = []
        for method in self.section.calibration:
            try:
                self._calibrate(method)
            except quantization.QuantiseError as error:
                self.say(f"static: {error}; left out")
                continue
            found.append(self._quantised("static", method, []))
            yield found[-1]
        if not found:
            raise quantization.QuantiseError(
                f"quantize.calibration: none of {', '.join(self.section.calibration)} finds ranges. Add minmax"
            )

    def mixed(self) -> Iterator[Attempt]:
        """More and more of the layers that lose most in float, until it holds or their weights are too many."""
        method = self._below().row["calibration"]
        for names in ladder.float_sets(self._sensitivity(method), self.section.max_float):
            attempt = self._quantised("mixed", method, names)
            yield attempt
            if attempt.row["holds"]:
                return

    def trained(self) -> Iterator[Attempt]:
        """The best graph so far, which learns from the teacher's signals as the student and the pruned network did."""
        below = self._below()
        params, plan, data = self.stage.params, self.section.training, self.data
        quantised = onnx.load(below.folder / "model.onnx")
        try:
            taught = self._lessons(params)
            network = FakeQuantised(quantised, onnx.load(self.folded))
        except quantization.QuantiseError as error:
            self.say(f"trained: {error}; left out")
            return
        # one process: each would have to climb alike, by an ONNX Runtime of its own
        fabric = training.make_fabric(params.run.device, 1, params.run.precision)
        network.to(fabric.device)
        batches = learning.batches_of(
            self.stage, data, learning.training_pool(data), self.preprocessing, params.student.augment,
            plan.batch_size, fabric, number_of_views=params.teach.views,
        )  # fmt: skip
        distilled = distillation.step_of(taught, data, network, len(batches), fabric.device)
        resume = self.stage.resume / "trained"
        resume.mkdir(exist_ok=True)
        self.history = learning.learn(
            self.stage, "quantize", network, batches, distilled.step, plan, data, self.preprocessing, fabric,
            resume=resume, extra=distilled.extra,
        )  # fmt: skip
        network.cpu().to(memory_format=torch.contiguous_format)
        folder = self._folder("trained")
        export.save_onnx(network.write_into(quantised), folder / "model.onnx", self.about)
        attempt = self._made(
            folder,
            "trained",
            below.row["calibration"],
            str(below.row["float_names"]).split(),
            int(self.history[-1]["step"]),
        )
        self._compare(network, attempt)
        yield attempt

    # --- what they are made of ---

    def _calibrate(self, method: export.Method) -> None:
        if self._ranges(method).is_file():  # by a run that was stopped
            return
        batches = np.array_split(self.inputs, -(-len(self.inputs) // BATCH))
        quantization.calibrate(self.folded, self._ranges(method), batches, method)

    def _ranges(self, method: str) -> Path:
        return self.work / f"{method}.json"

    def _quantised(self, rung: str, method: str, names: Sequence[str]) -> Attempt:
        folder = self._folder(f"{rung}-{method}-{len(names)}")
        nodes = [layer.node for layer in self.layers if layer.name in names]
        quantization.quantise(
            self.folded, folder / "model.onnx", self._ranges(method), self.about, leave=nodes, float_logits=True
        )
        return self._made(folder, rung, method, names)

    def _made(self, folder: Path, rung: str, method: str, names: Sequence[str], steps: int = 0) -> Attempt:
        about = {"rung": rung, "calibration": method, "float_layers": list(names)}
        checkpoint.write_spec(folder, self._spec(quantized=about), "model.onnx")
        weights = {layer.name: layer.weights for layer in self.layers}
        more = {
            "calibration": method,
            "steps": steps,
            "float_layers": len(names),
            "float_names": " ".join(names),
            "float_weights": sum(weights[name] for name in names) / max(1, sum(weights.values())),
        }
        logits = self._logits(folder)
        row = self._row(rung, folder, logits, self.float.logits) | more
        self.say(
            f"{rung} ({f'{len(names)} of {len(self.layers)} layers in float' if names else method}): "
            f"{row['accuracy']:.2%}, lost {self._drop(row)}"
        )
        return Attempt(row, folder, logits)

    def _row(self, rung: str, folder: Path, logits: Logits, of_float: Logits) -> ladder.Row:
        right, its = (values.argmax(1) == self.labels for values in (logits, of_float))
        lost = drop.drop_of(right, its, self.section.max_drop)
        return {
            **dict.fromkeys(ladder.COLUMNS),
            "rung": rung,
            "accuracy": float(right.mean()),
            "agreement": float((logits.argmax(1) == of_float.argmax(1)).mean()),
            "file_bytes": profiling.file_bytes(folder),
            **ladder.judged(lost),
        }

    def tested_besides(self, chosen: Attempt) -> int:
        """How many others were tested on the same images: of static the other calibrations, else those before it,
        where all calibrations are one."""
        rungs = [attempt.row["rung"] for attempt in self.tried]
        if chosen.row["rung"] == "static":
            return rungs.count("static") - 1
        at = next(number for number, attempt in enumerate(self.tried) if attempt is chosen)
        return ("static" in rungs) + sum(rung != "static" for rung in rungs[:at])

    def _drop(self, row: ladder.Row) -> drop.Drop:
        ends = (row["loss_points"], row["loss_low"], row["loss_high"])
        return drop.Drop(*ends, len(self.validation), self.section.max_drop)

    def _spec(self, **more: Any) -> dict[str, Any]:
        spec = {key: value for key, value in self.source.spec.items() if key != "val_accuracy"}
        parents = {self.section.source: self.source.sha256}
        return {**spec, "stage": "quantize", "format": "onnx_int8", "parents": parents, **more}

    def _folder(self, name: str) -> Path:
        folder = self.work / "attempts" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _logits(self, folder: Path) -> Logits:
        # not by predict.py: it knows every runtime, and a change to one would train this network again
        session = export.open_session(folder / "model.onnx", torch.get_num_threads())
        parts = np.split(self.validation, range(256, len(self.validation), 256))
        return np.concatenate([export.run_session(session, self._prepared(part)) for part in parts])

    def _prepared(self, index: npt.NDArray[np.int64]) -> Any:
        return views.preprocess(read_rows(self.data.images, index), self.preprocessing).numpy()

    def _sensitivity(self, method: str) -> list[dict[str, Any]]:
        """Measured once, also when the stage was stopped in between."""
        file = self.work / f"sensitivity-{method}.csv"
        known: list[Any] = []
        if file.is_file():  # whole: it is replaced, not rewritten. A layer may be called 8
            known = pd.read_csv(file, dtype={"layer": str, "kind": str}).to_dict("records")
        self.sensitivity = [{str(key): value for key, value in row.items()} for row in known]
        session = export.open_session(self.float.folder / "model.onnx", torch.get_num_threads())
        expected = export.run_session(session, self.inputs)
        left = self.layers[len(self.sensitivity) :]
        with self.stage.progress("sensitivity", len(self.layers)) as bar:
            for row in quantization.sensitivity(
                self.folded, self._ranges(method), left, self.inputs, expected, torch.get_num_threads()
            ):
                self.sensitivity.append(row)
                whole.write(file, lambda partial: _write_csv(partial, self.sensitivity))
                bar.update(len(self.sensitivity))
        return self.sensitivity

    def _lessons(self, params: Params) -> Params:
        """Without losses that compare layers: the graph in 8 bits has values and no modules."""
        kept = [part for part in params.distill.losses if "student_layers" not in part.parameters]
        if len(kept) == len(params.distill.losses):
            return params
        if not kept:
            raise quantization.QuantiseError(
                "no loss of distill.losses compares logits. To train in 8 bits add {name: kd, weight: 1.0} there"
            )
        self.say(f"trained with {', '.join(part.name for part in kept)}; losses that compare layers are left out")
        return params.model_copy(update={"distill": params.distill.model_copy(update={"losses": kept})})

    def _compare(self, network: FakeQuantised, attempt: Attempt) -> None:
        """What was trained against what was written, and against what ONNX Runtime makes of that."""
        written = FakeQuantised(onnx.load(attempt.folder / "model.onnx"))
        mine, again = (
            training.logits_of(model, self.data.images, self.validation, self.preprocessing).numpy()
            for model in (network, written)
        )
        if (mine.argmax(1) == again.argmax(1)).mean() < _SAME:
            raise export.ExportError(f"{attempt.folder}: what was written is not the network that was trained")
        same = float((attempt.logits.argmax(1) == mine.argmax(1)).mean())
        self.say(
            f"trained: the written graph's logits differ by {np.abs(mine - again).max():.1e} from those trained, "
            f"ONNX Runtime's by {np.abs(mine - attempt.logits).max():.1e}; {same:.2%} of {len(mine):,} validation "
            "images get the same class"
        )

    # --- which one ---

    @property
    def rungs(self) -> list[str]:
        """Those that were tried."""
        return list(dict.fromkeys(attempt.row["rung"] for attempt in self.tried))

    @property
    def chosen(self) -> Attempt:
        row = ladder.choose([attempt.row for attempt in self.tried])
        return next(attempt for attempt in self.tried if attempt.row is row)

    def _below(self) -> Attempt:
        """Where the next rung starts: the last of mixed, which has most layers in float; or the best of static."""
        mixed = [attempt for attempt in self.tried if attempt.row["rung"] == "mixed"]
        return mixed[-1] if mixed else self.chosen

    def time(self) -> None:
        """Milliseconds of a batch, of all attempts and of the float network, in the same rounds on one thread."""
        attempts = [self.float, *self.tried]
        batch = np.resize(self.inputs, (self.section.latency_batch, *self.inputs.shape[1:]))
        sessions = [export.open_session(attempt.folder / "model.onnx", 1) for attempt in attempts]
        calls = {str(n): partial(export.run_session, session, batch) for n, session in enumerate(sessions)}
        samples = profiling.measure_latency(calls, _REPEATS, _WARMUP, self.stage.params.run.seed)
        for number, attempt in enumerate(attempts):
            taken = samples[str(number)]
            attempt.row["latency_ms"] = profiling.summarise_latency(taken)[0]
            attempt.row["latency_low"], attempt.row["latency_high"] = profiling.median_interval(taken)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    pd.DataFrame(list(rows), columns=None if columns is None else list(columns)).to_csv(path, index=False)


def _write(stage: Stage, climb: Climb | None) -> None:
    """The network, the ladder, and the sentences that say whether it holds; of nothing, an empty table."""
    section = stage.params.quantize
    chosen = climb.chosen if climb else None
    with stage.output("data/quantize") as folder:
        folder.mkdir(exist_ok=True)
        if climb and chosen and section.candidate:
            _write_network(stage, climb, chosen, folder / section.candidate)
    with stage.output("reports/quantize") as folder:
        folder.mkdir(exist_ok=True)
        rows = [attempt.row | {"chosen": attempt is chosen} for attempt in [climb.float, *climb.tried]] if climb else []
        _write_csv(folder / ladder.LADDER.name, rows, ladder.COLUMNS)
        if climb is None or chosen is None:
            return
        if climb.sensitivity:
            _write_csv(folder / ladder.SENSITIVITY.name, climb.sensitivity)
        if climb.history:
            pd.DataFrame(climb.history).astype({"step": int}).to_csv(folder / "history.csv", index=False)
        lost = climb._drop(chosen.row)
        lines = ladder.describe(
            str(section.candidate), section.source, chosen.row, climb.rungs, lost, len(climb.layers),
            besides=climb.tested_besides(chosen),
        )  # fmt: skip
        reached = {
            "candidate": section.candidate,
            "source": section.source,
            "met": bool(chosen.row["holds"]),
            **{key: chosen.row[key] for key in ("rung", "calibration", "float_layers")},
            "loss_points": lost.points,
            "loss_low": lost.low,
            "loss_high": lost.high,
            "max_drop": section.max_drop,
            "images": lost.images,
            "lines": lines,
        }
        (folder / "target.json").write_text(json.dumps(reached, indent=2) + "\n", encoding="utf-8")
    for line in lines:
        climb.say(line)
    for number, row in enumerate(rows):
        stage.record.metrics(
            {f"quantize/{key}": float(value) for key, value in row.items() if isinstance(value, int | float)},
            step=number,
        )
    stage.record.metrics({"quantize/holds": float(reached["met"])})
    stage.record.tags({"mlflow.note.content": "\n\n".join(lines)})
    stage.record.artifact("reports/quantize")
    stage.record.artifact(f"data/quantize/{section.candidate}/model.onnx", "candidate")


def _write_network(stage: Stage, climb: Climb, chosen: Attempt, target: Path) -> None:
    target.mkdir()
    for path in chosen.folder.glob("model.onnx*"):
        shutil.copy2(path, target / path.name)
    spec = checkpoint.read_spec(chosen.folder)
    section = stage.params.export
    if section.preprocessing_in_graph:
        spec["input"] = "pixels"
        channels = climb.data.images.shape[-1]
        about = {**climb.about, "input": "pixels"}
        export.add_preprocessing(target / "model.onnx", climb.preprocessing, channels, about)
    checkpoint.write_spec(target, spec, "model.onnx")


if __name__ == "__main__":
    run_stage("quantize", quantize)
