"""Which networks prune: each is cut, trained one step, saved, loaded in a new process, exported and compared.

    python -m benchmarks.coverage                     # every network that has no result yet, small ones first
    python -m benchmarks.coverage --family resnet     # those of one family
    python -m benchmarks.coverage --network timm:convnext_atto
    python -m benchmarks.coverage --write             # docs/networks.md from the results
    python -m benchmarks.coverage --check             # exits with 1 where one fails or the page is old

Each network has a process of its own, with a bound on memory and on time, and another one to be loaded in. Results go
to benchmarks/coverage.json one by one, so that a run which was stopped goes on where it was. For 30 % and for 60 % of
the channels of every layer:

- cut: at most as large a share of the MACs is left as of the channels, and in truth about its square
- forward and one training step: the loss is finite, and the weights move
- save, and load in a new process: logits equal bit for bit
- ONNX Runtime: logits within 1e-4 of PyTorch's, relative to the largest logit

Weights are random: what the network has learnt makes no difference here. Images are as small as the network takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.environment import repository_root, set_environment
from tasks.machine import keep_memory
from thinner.data import views
from thinner.networks.spec import NetworkSpec

RESULTS, PAGE = Path("benchmarks/coverage.json"), Path("docs/networks.md")
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
RATIOS = (0.3, 0.6)
TOLERANCE = 1e-4  # of the largest logit
SLACK = 0.05  # of the MACs: half of a ShuffleNet's channels pass its blocks by, and go with those of the other half
CLASSES, BATCH = 10, 2
LARGEST_PARAMS = 145_000_000  # above it, a network is "not run (size)": minutes and many GB on a small machine


@dataclass(frozen=True)
class Family:
    name: str
    pattern: str  # of networks' names
    size: int = 64  # px, the smallest input that every member takes


# The first that fits counts. torchvision's are all of its classifiers; of timm's and our own, those that people use.
FAMILIES = (
    Family("swin v2", r"swinv2_cr", 224),
    Family("swin v2", r"swin_v2|swinv2", 256),
    Family("swin", r"swin", 224),
    Family("maxvit", r"maxvit_rmlp_pico_rw_256", 256),
    Family("maxvit", r"maxvit", 224),
    Family("deit", r"deit", 224),
    Family("vit", r"vit_b_16|vit_b_32|vit_l_16|vit_l_32|vit_h_14|vit_tiny|vit_small", 224),
    Family("convnext", r"convnext"),
    Family("resnext", r"resnext"),
    Family("regnet", r"regnet"),
    Family("resnet for small images", r"^resnet\d+(a|x4)$", 32),
    Family("wide resnet for small images", r"^wrn-", 32),
    Family("resnet", r"resnet"),
    Family("densenet", r"densenet"),
    Family("mobilenet v2", r"mobilenet_?v2"),
    Family("mobilenet v3", r"mobilenet_?v3"),
    Family("efficientnet v2", r"efficientnet_?v2"),
    Family("efficientnet lite", r"efficientnet_lite"),
    Family("efficientnet", r"efficientnet"),
    Family("shufflenet", r"shufflenet"),
    Family("squeezenet", r"squeezenet"),
    Family("googlenet", r"googlenet"),
    Family("inception", r"inception", 128),
    Family("vgg with BN", r"vgg\d+_bn"),
    Family("vgg", r"vgg"),
    Family("mnasnet", r"mnasnet"),
    Family("alexnet", r"alexnet"),
)
OURS = ("resnet20a", "resnet56a", "resnet8x4", "resnet32x4", "wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2")
TIMM = (
    "resnet10t", "resnet18", "resnet50", "resnext26ts", "resnext50_32x4d", "regnetx_002", "regnety_002",
    "densenet121", "mobilenetv2_050", "mobilenetv2_100", "mobilenetv3_small_050", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "tf_efficientnet_lite0", "tf_efficientnet_lite2", "efficientnet_b0", "efficientnetv2_rw_t",
    "tf_efficientnetv2_s", "vgg11", "vgg11_bn", "mnasnet_100", "semnasnet_075", "convnext_atto", "convnext_tiny",
    "convnextv2_atto", "vit_tiny_patch16_224", "vit_small_patch16_224", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "swin_s3_tiny_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "maxvit_rmlp_pico_rw_256", "maxvit_tiny_tf_224", "inception_v3",
)  # fmt: skip


def family_of(name: str) -> Family:
    inner = name.rpartition(":")[2]
    return next(family for family in FAMILIES if re.search(family.pattern, inner))


def networks() -> list[str]:
    """Every classifier of torchvision, and the ones of timm and of our own above."""
    from thinner.networks import models

    classifiers = [name for name in models.names() if name.startswith("torchvision:")]
    return [*classifiers, *(f"timm:{name}" for name in TIMM), *OURS]


def parameters(name: str) -> int:
    """Of the network with ``CLASSES`` outputs; nothing is allocated."""
    from thinner.measure.profiling import count_params
    from thinner.networks import models

    return count_params(models.skeleton(NetworkSpec(name, CLASSES, 3)))


# ------------------------------------------------------------------------------------------------ one network


def examine(name: str, size: int, folder: Path) -> dict[str, Any]:
    """Cut, train one step, export; and save into ``folder``, with the logits that a loaded network must have."""
    import numpy as np
    import torch

    from thinner.compress import pruning
    from thinner.errors import UserError
    from thinner.measure.profiling import count_macs, count_params
    from thinner.networks import checkpoint, models

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = NetworkSpec(name, CLASSES, 3)
    model = models.create(network).eval()
    shape = (3, size, size)
    macs, params = count_macs(model, shape), count_params(model)
    found: dict[str, Any] = {"params": params, "ratios": {}}
    x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(1))
    for ratio in RATIOS:
        try:
            smaller = pruning.cut_share(model, torch.zeros(1, *shape), ratio, criterion="l2")
        except UserError as error:
            return found | {"refused": str(error)}
        row: dict[str, Any] = {
            "macs_left": round(count_macs(smaller, shape) / macs, 4),
            "params_left": round(count_params(smaller) / params, 4),
        }
        found["ratios"][str(ratio)] = row
        row["step"] = train_step(smaller, x)
        kept = folder / str(ratio)
        sees = views.Preprocessing(size, mean=(0.5,) * 3, std=(0.5,) * 3)
        names = [f"class {number}" for number in range(CLASSES)]
        checkpoint.save(
            kept, smaller, {"network": network.as_json(), "classes": names, "preprocessing": sees.as_json()}
        )
        np.save(kept / "x.npy", x.numpy())
        with torch.inference_mode():
            logits = smaller(x).numpy()
        np.save(kept / "logits.npy", logits)
        try:
            row["onnx_difference"] = onnx_difference(smaller, x.numpy(), logits, kept)
        except Exception:
            if not found.get("no_onnx") and exports(model, x, folder):
                raise
            found["no_onnx"] = True  # PyTorch's exporter cannot do the network as it is, so pruning is not at fault
    return found


def exports(model: Any, x: Any, folder: Path) -> bool:
    """Whether PyTorch can export the network and ONNX Runtime can run it."""
    import torch

    with torch.inference_mode():
        logits = model(x).numpy()
    try:
        onnx_difference(model, x.numpy(), logits, folder)
    except Exception:  # noqa: BLE001 - whatever stops it
        return False
    return True


def train_step(model: Any, x: Any) -> bool:
    """One step of SGD: is the loss finite, and has the classifier moved?"""
    import torch
    import torch.nn.functional as F

    from thinner.networks import models

    model.train()
    before = models.head_of(model)[1].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % CLASSES)
    loss.backward()
    optimizer.step()
    model.eval().zero_grad()
    return bool(torch.isfinite(loss)) and not torch.equal(before, models.head_of(model)[1].weight)


def onnx_difference(model: Any, x: Any, logits: Any, folder: Path) -> float:
    """Largest difference between the logits of ONNX Runtime and ``logits``, relative to the largest logit."""
    import numpy as np

    from thinner.config import load_params
    from thinner.networks import export

    export.export_onnx(model, folder / "model.onnx", tuple(x.shape[1:]), {}, load_params().export.opset)
    got = export.run_session(export.open_session(folder / "model.onnx"), x)
    return float(np.abs(got - logits).max() / np.abs(logits).max())


def load_again(folder: Path) -> dict[str, bool]:
    """For each ratio: are the logits of the loaded network those before saving, bit for bit?"""
    import numpy as np
    import torch

    from thinner.networks import checkpoint

    torch.set_num_threads(1)
    same = {}
    for ratio in RATIOS:
        kept = folder / str(ratio)
        with torch.inference_mode():
            logits = checkpoint.load(kept).model(torch.from_numpy(np.load(kept / "x.npy"))).numpy()
        same[str(ratio)] = bool(np.array_equal(logits, np.load(kept / "logits.npy")))
    return same


# --------------------------------------------------------------------------------------------- all of them


PRELOADED = [
    "torch",
    "torchvision",
    "timm",
    "onnxscript",
    "onnxruntime",
    "thinner.compress.pruning",
    "thinner.networks.checkpoint",
    "thinner.networks.export",
]


def judge(name: str, size: int, limit_gb: float, timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = bounded(examine, (name, size, Path(folder)), limit_gb, timeout_s)
        if "failed" not in found and "refused" not in found:
            loaded = bounded(load_again, (Path(folder),), limit_gb, timeout_s)
            if "failed" in loaded:
                found["failed"] = f"does not load: {loaded['failed']}"
            for ratio, row in found["ratios"].items():
                row["loads"] = loaded.get(ratio, False)
    return {"size": size, **found}


def bounded(work: Callable[..., dict[str, Any]], given: tuple[Any, ...], limit_gb: float, timeout_s: float) -> Any:
    """``work(*given)`` in a new process, which is ended when it holds more than ``limit_gb`` or takes too long."""
    import psutil

    # its server has imported everything and done nothing; a process forked off it need not import for seconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, given))
    began = time.monotonic()
    process.start()
    theirs.close()
    failure = None
    while failure is None and not ours.poll(0.2):
        if not process.is_alive():
            failure = "its process ended without a result"
        elif time.monotonic() - began > timeout_s:
            failure = f"more than {timeout_s:g} s"
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(process.pid).memory_info().rss > limit_gb * 2**30:
                    failure = f"more than {limit_gb:g} GB"
    try:
        answer = ours.recv() if ours.poll() else {"failed": failure}
    except EOFError:
        answer = {"failed": "its process ended without a result"}
    process.join(timeout=None if failure is None else 0)
    if process.is_alive():
        process.kill()
        process.join()
    return answer


def _answer(pipe: Any, work: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> None:
    try:
        pipe.send(work(*given))
    except Exception as error:  # noqa: BLE001 - any failure is a result, and goes into the table
        text = str(error).strip().splitlines()
        pipe.send({"failed": f"{type(error).__name__}: {text[0] if text else 'no message'}"})


def passes(result: dict[str, Any]) -> bool:
    rows = result.get("ratios", {})
    return len(rows) == len(RATIOS) and all(
        _is_cut(ratio, row) and row["step"] and row.get("loads") and (result.get("no_onnx") or _equal(row))
        for ratio, row in rows.items()
    )


def _is_cut(ratio: str, row: dict[str, Any]) -> bool:
    return bool(row["macs_left"] <= 1 - float(ratio) + SLACK)


def _equal(row: dict[str, Any]) -> bool:
    return bool(row.get("onnx_difference", 1.0) <= TOLERANCE)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per network, by family; then what was not run, and what is refused."""
    lines = [
        "| family | network | px | parameters | MACs left at 30 % | at 60 % | result |",
        "|---|---|---|---|---|---|---|",
    ]
    order = {family.name: number for number, family in enumerate(FAMILIES)}
    for name in sorted(results, key=lambda n: (order[family_of(n).name], n.startswith("timm:"), results[n]["params"])):
        result = results[name]
        left = [result.get("ratios", {}).get(str(ratio), {}).get("macs_left") for ratio in RATIOS]
        cells = ["" if share is None else f"{share:.0%}" for share in left]
        lines.append(
            f"| {family_of(name).name} | {name} | {result.get('size', '')} | {result['params'] / 1e6:.1f} M "
            f"| {cells[0]} | {cells[1]} | {verdict(result)} |"
        )
    return "\n".join(lines)


def verdict(result: dict[str, Any]) -> str:
    if passes(result):
        return "prunes" + "; PyTorch's ONNX exporter fails, on the whole network too" * result.get("no_onnx", False)
    if "not_run" in result:
        return f"not run here ({result['not_run']})"
    if "refused" in result:
        return f"refused: {result['refused']}"
    if "failed" in result:
        return f"FAILS: {result['failed']}"
    wrong = []
    for ratio, row in result["ratios"].items():
        wrong += [] if _is_cut(ratio, row) else [f"{ratio}: {row['macs_left']:.0%} of the MACs are left"]
        wrong += [f"{ratio}: {key}" for key in ("step", "loads") if not row.get(key)]
        wrong += [f"{ratio}: ONNX {row['onnx_difference']:.0e}"] if not (result.get("no_onnx") or _equal(row)) else []
    return f"FAILS: {', '.join(wrong)}"


def page(text: str, results: dict[str, Any]) -> str:
    """``text`` with the table between its two marks put anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{summary(results)}\n\n{table(results)}\n\n{END}{rest.partition(END)[2]}"


def summary(results: dict[str, Any]) -> str:
    ran = [result for result in results.values() if "not_run" not in result]
    missing = sorted(set(networks()) - set(results))
    text = f"{sum(map(passes, ran))} of the {len(ran)} networks that were run prune"
    text += f"; {len(results) - len(ran)} are too large to be run here." if len(results) > len(ran) else "."
    return text + (f" No result yet for {len(missing)}: {', '.join(missing)}." if missing else "")


def read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def run(names: list[str], limit_gb: float, timeout_s: float) -> None:
    """Those of ``names`` without a result, smallest first; each result is written at once."""
    sizes = {name: parameters(name) for name in names}
    for name in sorted(names, key=lambda n: sizes[n]):
        results = read()
        if name in results and "not_run" not in results[name]:
            continue
        family = family_of(name)
        began = time.monotonic()
        if sizes[name] > LARGEST_PARAMS:
            smaller = [n for n in sizes if family_of(n).name == family.name and sizes[n] <= LARGEST_PARAMS]
            stands_for = max(smaller, key=lambda n: sizes[n])
            result: dict[str, Any] = {"size": family.size, "not_run": f"size; {stands_for} stands for it"}
        else:
            result = judge(name, family.size, limit_gb, timeout_s)
        results = read() | {name: {"params": sizes[name], **result}}
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(f"{name:<44}{time.monotonic() - began:7.0f} s  {verdict(results[name])}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--family", help="only networks of this family, for example resnet")
    parser.add_argument("--network", action="append", help="only this one, for example timm:convnext_atto; again")
    parser.add_argument("--limit-gb", type=float, default=6.0, help="memory of one network's processes (6)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one network (600)")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE}; runs nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the page does not fit; runs nothing")
    options = parser.parse_args()
    set_environment()
    keep_memory()
    repository_root()
    if options.write:
        PAGE.write_text(page(PAGE.read_text(), read()))
        return 0
    if options.check:
        results = read()
        wrong = [name for name, result in results.items() if not passes(result) and "not_run" not in result]
        wrong = [name for name in wrong if "refused" not in results[name]]
        for name in wrong:
            print(f"{name}: {verdict(results[name])}", file=sys.stderr)
        for name in sorted(set(networks()) - set(results)):
            print(f"{name}: no result yet", file=sys.stderr)
        if PAGE.read_text() != page(PAGE.read_text(), results):
            print(f"{PAGE} does not fit {RESULTS}. Run: python -m benchmarks.coverage --write", file=sys.stderr)
            return 1
        return 1 if wrong or set(networks()) - set(results) else 0
    chosen = options.network or networks()
    if options.family:
        chosen = [name for name in chosen if family_of(name).name == options.family]
        if not chosen:
            known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
            print(f"--family: unknown '{options.family}'. Choose one of: {known}", file=sys.stderr)
            return 2
    run(chosen, options.limit_gb, options.timeout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
