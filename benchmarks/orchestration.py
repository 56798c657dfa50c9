"""What do Prefect, DVC and MLflow cost? Per stage, for a run with nothing to do, and by number of files.

    python -m benchmarks.orchestration                       # `stages` and `nothing`, some four minutes
    python -m benchmarks.orchestration stages nothing files --files 10000 100000
    python -m benchmarks.orchestration shards --files 10000  # small pictures as files, and in tar shards
    python -m benchmarks.orchestration study search          # each with one worker and with two
    python -m benchmarks.orchestration search --file searches/default.yaml --runs 18  # of it, hours
    python -m benchmarks.orchestration --job 495             # the seconds of the whole job, for its share
    python -m benchmarks.orchestration --json FILE --check   # exits with 1 where a must falls short

`stages`: a chain of stages that do nothing but import torch, as every training program does, is run four ways: the
programs alone; with what a stage records in MLflow; by `dvc repro`; by the flow, which has Prefect besides, and whose
stages are forks of a process that has imported torch and MLflow. What one way takes more than the way before it is the
cost of what it adds; so the flow's may be negative. A run of one stage beside a run of all of them tells what a run
costs (Prefect's server, that process) from what a stage costs.

`nothing`: a job that is up to date is asked for again. `files`: folders of small files under `dvc add`, in fresh
caches; the exponent is the slope between the last two, both as logarithms. `shards`: so many pictures as files and in
shards of a thousand, under `dvc add` and as `prepare` reads them, right after they were written.

Seconds are of the wall clock, the median of the repeats; seconds of the processor stand beside them, since these say
less about what else the machine did.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from benchmarks import distillation
from benchmarks.clones import clone_environment, make_clone
from tasks import lineage
from tasks.environment import child_environment, repository_root
from tasks.git import git
from tasks.record.mlflow_client import first_line
from tasks.stage import params_digest
from thinner.data import packing, sources
from thinner.errors import UserError

MUSTS = {"dvc_seconds": 3.0, "run_seconds": 6.0, "share": 0.03}
SHARED = 0.9  # of what two cores give two trainings, at least by a study or a search of two workers
PARTS = ("stages", "nothing", "study", "search", "files", "shards")
STAGES = 5  # in the chain
PROGRAM = '''"""Nothing, and torch."""

import sys
from pathlib import Path

from tasks import forks

forks.hand_over()  # as `tasks` does for its own programs
import torch  # noqa: F401 - what every training program imports


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nothing.txt").write_text(Path("turn.txt").read_text())


def body(stage: object) -> None:
    with stage.output(f"data/{stage.name}") as folder:
        write(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        write(Path("data", sys.argv[2]))
    else:
        from tasks.stage import run_stage

        run_stage(sys.argv[1], body)
'''


class Cost(NamedTuple):
    """Of one command, with all processes that it waited for."""

    wall: float  # seconds
    cpu: float


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Cost:
    """Raises UserError where the command fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def middle(costs: Sequence[Cost]) -> Cost:
    return Cost(median(cost.wall for cost in costs), median(cost.cpu for cost in costs))


# ------------------------------------------------------------------------------------------------- per stage


def names(count: int) -> list[str]:
    return [f"nothing{number}" for number in range(count)]


def make_chain(root: Path, folder: Path, count: int) -> dict[str, str]:
    """A repository under git and DVC whose stages do nothing, one after the other; the environment for its commands."""
    folder.mkdir(parents=True)
    stages, deps = {}, ["program.py", "turn.txt"]
    for name in names(count):
        stages[name] = {"cmd": f"python program.py {name}", "deps": deps, "outs": [f"data/{name}"]}
        deps = ["program.py", "turn.txt", f"data/{name}"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "program.py").write_text(PROGRAM)
    (folder / "turn.txt").write_text("")
    (folder / ".gitignore").write_text("/.prefect/\n/.thinner/\nmlflow.db*\n/mlartifacts/\n__pycache__/\n")
    shutil.copy(root / "params.yaml", folder)
    environment = clone_environment(root) | {"PREFECT_HOME": str(folder / ".prefect"), "SHELL": "/bin/sh"}
    environment["DVC_SITE_CACHE_DIR"] = str(folder.parent / "site-cache")
    environment["THINNER_CHECKED"] = params_digest(folder)  # the depth of the check is the job's, not the tools'
    for command in (
        ["git", "init", "--quiet"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
    ):
        timed(command, folder, environment)
    _commit(folder)
    return environment


def _commit(folder: Path) -> None:
    who = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org")
    git(folder, "add", "--all")
    git(folder, *who, "commit", "--quiet", "--message", "all")


def measure_stages(root: Path, folder: Path, repeats: int, count: int = STAGES) -> dict[str, Any]:
    """By tool, the seconds that it adds to a stage, and what Prefect adds to a run."""
    environment = make_chain(root, folder, count)
    python, chain = sys.executable, names(count)
    costs: dict[str, list[Cost]] = {way: [] for way in ("alone", "recorded", "dvc", "one", "flow")}
    for turn in range(-1, repeats):  # the first makes MLflow's tables and fills the caches of the disk

        def again(way: str, *commands: Sequence[str], turn: int = turn) -> None:
            (folder / "turn.txt").write_text(f"{way} {turn}")  # everything is out of date, and nothing in a cache
            found = [timed(command, folder, environment) for command in commands]
            if turn >= 0:
                costs[way].append(Cost(sum(c.wall for c in found), sum(c.cpu for c in found)))

        again("alone", *([python, "program.py", "alone", name] for name in chain))
        again("recorded", *([python, "program.py", name] for name in chain))
        again("dvc", [python, "-m", "dvc", "repro", "--quiet"])
        again("one", [python, "-m", "flows.pipeline", chain[0], "--quiet"])
        again("flow", [python, "-m", "flows.pipeline", "--quiet"])
    at = {way: middle(found) for way, found in costs.items()}
    alone, recorded, dvc = (_per(at[way], count) for way in ("alone", "recorded", "dvc"))
    flow = _per(_less(at["flow"], at["one"]), count - 1)
    once = _less(at["one"], flow)
    return {
        "stages": count,
        "repeats": repeats,
        "program": alone._asdict(),
        "mlflow": _less(recorded, alone)._asdict(),
        "dvc": _less(dvc, recorded)._asdict(),
        "prefect": _less(flow, dvc)._asdict(),
        "stage": _less(flow, alone)._asdict(),
        "run": once._asdict(),
    }


def _per(cost: Cost, count: int) -> Cost:
    return Cost(cost.wall / count, cost.cpu / count)


def _less(cost: Cost, other: Cost) -> Cost:
    return Cost(cost.wall - other.wall, cost.cpu - other.cpu)


# ------------------------------------------------------------------------------------------- nothing to do


def measure_nothing(root: Path, repeats: int) -> dict[str, Any]:
    """``root``'s own job, asked for again. Raises UserError where it is not up to date."""
    environment = child_environment()
    pipeline = ["make", "run"] if (root / ".venv" / ".thinner-installed").exists() else _FLOW
    first = subprocess.run(_FLOW, cwd=root, env=environment, text=True, capture_output=True, check=False)
    if "Every stage is up to date" not in first.stdout:
        raise UserError(f"nothing: the job in {root} is not up to date. Run it first: make run")
    found: dict[str, list[Cost]] = {"dvc": [], "run": []}
    for _ in range(repeats):
        found["dvc"].append(timed([sys.executable, "-m", "dvc", "repro"], root, environment))
        found["run"].append(timed(pipeline, root, environment))
    return {"command": " ".join(pipeline[:2])} | {name: middle(costs)._asdict() for name, costs in found.items()}


_FLOW = [sys.executable, "-m", "flows.pipeline"]


# ------------------------------------------------------------------------------------------- studies


STUDY = {
    "title": "How two workers share a study",
    "seeds": [0],
    "target": "scratch",
    "measure": "val_accuracy",
    "baseline": "a",
    "set": {"run.threads": 1},
}


def smoothings(runs: int) -> list[float]:
    """What differs costs nothing: as long a training, another result."""
    return [round(0.01 * n, 2) for n in range(runs)]


def study(runs: int) -> dict[str, Any]:
    differing = enumerate(smoothings(runs))
    return {**STUDY, "variants": {chr(ord("a") + n): {"set": {"scratch.label_smoothing": one}} for n, one in differing}}


def search(runs: int) -> dict[str, Any]:
    """The default is one of them, and needs no training of its own."""
    return {
        "title": STUDY["title"],
        "candidate": STUDY["target"],
        "space": {"scratch.label_smoothing": smoothings(runs)},
        "set": STUDY["set"],
        "against": "params",
        "trials": runs,
    }


MANY = {
    "study": ("studies/workers.yaml", study, ["flows.sweep"]),
    "search": ("searches/workers.yaml", search, ["flows.cli", "search"]),
}


# What each run of the study trains, without any tool: what two processor cores give two of them, whoever starts them.
PLAIN = """
import shutil
import time
import torch
from tasks.scratch import scratch
from tasks.stage import Stage
from thinner.config import load_params
torch.set_num_threads(1)
stage = Stage("scratch", load_params())
shutil.rmtree(stage.resume)  # it would go on from the end of the last one
began = time.perf_counter()
scratch(stage)
print("seconds", time.perf_counter() - began)
"""


def measure_cores(clones: Sequence[Path], rounds: int = 3) -> float:
    """How fast a training is beside another one, as a ratio of how fast it is alone. Below 1 where two cores share what
    computes, memory or their clock."""

    def seconds(some: Sequence[Path]) -> float:
        begun = [
            subprocess.Popen(
                [sys.executable, "-c", PLAIN], cwd=one, env=clone_environment(one), text=True, stdout=subprocess.PIPE
            )
            for one in some
        ]
        said = [process.communicate()[0] for process in begun]
        if any(process.returncode for process in begun):
            raise UserError(f"a training without any tool failed in {', '.join(map(str, some))}")
        return max(float(text.split("seconds")[-1]) for text in said)

    return median(seconds(clones[:1]) / seconds(clones) for _ in range(rounds))


def search_of(path: Path, runs: int) -> dict[str, Any]:
    """The search in ``path``, which ends by its number of trials: in as many minutes one worker has fewer of them."""
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--file {path}: {first_line(error)}") from None
    if not isinstance(words, dict):
        raise UserError(f"--file {path}: is no search. docs/search.md says how to write one")
    return {**{key: value for key, value in words.items() if key != "minutes"}, "trials": runs}


def measure_workers(root: Path, folder: Path, what: str, runs: int, path: Path | None = None) -> dict[str, Any]:
    """A study or search of ``runs`` trainings of `scratch` that share only `prepare`, with two workers and with one; or
    as many trials of the search in ``path``, with all that it makes besides."""
    if (os.cpu_count() or 1) < 2:
        raise UserError(f"{what}: two workers need two processor cores, and this machine has one")
    file, made, program = MANY[what]
    words = search_of(path, runs) if path else made(runs)
    seconds = {}
    for workers in (2, 1):  # the shorter one first: it says how long the other will take
        clone = folder / f"workers{workers}"
        make_clone(root, clone)
        source = yaml.safe_load((root / "params.yaml").read_text())["data"]
        if (root / source["root"]).is_dir():
            shutil.copytree(root / source["root"], clone / source["root"], symlinks=True, dirs_exist_ok=True)
        (clone / file).write_text(yaml.safe_dump(words, sort_keys=False))
        _commit(clone)
        environment = clone_environment(clone)
        timed([sys.executable, "-m", "dvc", "repro", "--quiet", "prepare"], clone, environment)
        command = [sys.executable, "-m", *program, file, "--workers", str(workers)]
        seconds[workers] = timed(command, clone, environment).wall
        print(f"{what} with {workers} worker(s): {seconds[workers]:.0f} s", flush=True)
    efficiency, cores = seconds[1] / (2 * seconds[2]), measure_cores([folder / "workers1", folder / "workers2"])
    return {"runs": runs, "one": seconds[1], "two": seconds[2], "efficiency": efficiency, "cores": cores}


# ------------------------------------------------------------------------------------------- files


def measure_files(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """``dvc add`` of folders of small files, then ``dvc status``, and memory at the peak; with the exponents."""
    rows = []
    for count in sorted(counts):
        place = folder / f"files{count}"
        (place / "raw").mkdir(parents=True)
        for number in range(count):
            inner = place / "raw" / f"{number // 1000:04d}"
            if number % 1000 == 0:
                inner.mkdir()
            (inner / f"{number:07d}.txt").write_text(f"{number}\n" * 100)
        rows.append({"files": count, **_watched(place / "raw")})
        shutil.rmtree(place)
    found: dict[str, Any] = {"rows": rows}
    if len(rows) > 1:  # of the two largest: what any number costs hides it in small ones
        before, last = rows[-2:]
        for key in ("add", "status", "peak_bytes"):
            found[f"{key}_exponent"] = math.log(last[key] / before[key]) / math.log(last["files"] / before["files"])
    return found


SHARD_PICTURES = 1000
_PREPARE = '''"""What prepare does with a source: lists it, then decodes and writes all of it."""

import json, sys, time
from pathlib import Path

import psutil

from thinner.data.sources import list_source
from thinner.data.store import write_store


source, root, store = sys.argv[1:]
memory = psutil.Process().memory_info
before, began = memory().rss, time.perf_counter()
listing = list_source(source, root, lambda line: None)
listed, after = time.perf_counter(), memory().rss
write_store(
    Path(store), listing, source=source, image_size=32, channels=3, fit="crop", labelled=0.5, validation=0.25,
    test=0.25, unlabelled="rest", max_unreadable=0.0, max_pixels=10**6, seed=0,
)
took = {"list": listed - began, "prepare": time.perf_counter() - began}
print(json.dumps({**took, "list_bytes": max(0, after - before)}))
'''


def measure_shards(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Pictures of 32 px as files and in shards: DVC as in `measure_files`; seconds to list them, the memory that this
    took, and seconds of all that `prepare` does with them; and seconds to pack them."""
    rows = []
    for count in sorted(counts):
        place = folder / f"shards{count}"
        photos, shards = place / "files" / "raw", place / "shards" / "raw"
        write_pictures(photos, count)
        shards.mkdir(parents=True)
        began = time.perf_counter()
        listing = sources.list_source(f"folder:{photos}", photos, lambda line: None)
        packing.pack(listing, photos, photos, shards, most_pictures=SHARD_PICTURES)
        packed = time.perf_counter() - began
        for kind, raw in (("folder", photos), ("shards", shards)):
            row = {"pictures": count, "as": kind, "files": sum(path.is_file() for path in raw.rglob("*"))}
            row |= _watched(raw)
            command = [sys.executable, "-c", _PREPARE, f"{kind}:{raw}", str(raw), str(place / f"store-{kind}")]
            done = subprocess.run(
                command, cwd=repository_root(), env=child_environment(), text=True, capture_output=True, check=False
            )
            if done.returncode:
                raise UserError(f"shards: {done.stderr[-1000:]}")
            rows.append({**row, **json.loads(done.stdout), "pack": packed if kind == "shards" else None})
        stores = [(place / f"store-{kind}" / "images.npy").read_bytes() for kind in ("folder", "shards")]
        if stores[0] != stores[1]:
            raise UserError("shards: the stores of the same pictures differ")
        shutil.rmtree(place)
    return rows


def write_pictures(folder: Path, count: int) -> None:
    """Small JPEGs of noise in ten classes, each its own."""
    for number in range(count):
        inner = folder / f"class{number % 10}"
        if number < 10:
            inner.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(inner / f"{number:07d}.jpg")


def _watched(raw: Path) -> dict[str, Any]:
    """What `dvc add` and `dvc status` take for the folder ``raw``, in a repository around it."""
    environment = child_environment(DVC_SITE_CACHE_DIR=str(raw.parent / "site-cache"))
    timed(["git", "init", "--quiet"], raw.parent, environment)
    timed([sys.executable, "-m", "dvc", "init", "--quiet"], raw.parent, environment)
    add, peak = _with_peak(["add", "--quiet", raw.name], raw.parent, environment)
    status = timed([sys.executable, "-m", "dvc", "status", "--quiet"], raw.parent, environment)
    return {"add": add, "status": status.wall, "peak_bytes": peak}


def _with_peak(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[float, int]:
    """Seconds, and the memory at the peak in bytes, of DVC with these arguments."""
    code = (
        "import resource, sys; from dvc.cli import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(f"dvc {' '.join(command)}: {done.stderr[-1000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - began, int(done.stdout.split()[-1]) * unit


# ------------------------------------------------------------------------------------------- the end


def share_of(stages: Mapping[str, Any], count: int, seconds: float) -> float:
    """The part of a job of ``seconds`` with ``count`` stages, one after the other, that is not its programs' own."""
    return float((stages["run"]["wall"] + count * stages["stage"]["wall"]) / seconds)


def fallen_short(found: Mapping[str, Any]) -> list[str]:
    """One line for each must that was measured and is not met."""
    nothing = found.get("nothing", {})
    values = {
        "dvc_seconds": nothing.get("dvc", {}).get("wall"),
        "run_seconds": nothing.get("run", {}).get("wall"),
        "share": found.get("share"),
    }
    short = [
        f"{name}: {value:.3g}, at most {MUSTS[name]:g} asked"
        for name, value in values.items()
        if value is not None and value > MUSTS[name]
    ]
    for what in MANY:
        row = found.get(what)
        if row and (shared := row["efficiency"] / row["cores"]) < SHARED:
            short.append(f"{what}: {shared:.2f} of what two cores give, at least {SHARED:g} asked")
    return short


def render(found: Mapping[str, Any]) -> str:
    lines = []
    if stages := found.get("stages"):
        lines += [f"Per stage, of {stages['stages']} in a row, the median of {stages['repeats']}:", ""]
        lines += ["| what | seconds | of the processor |", "|---|---:|---:|"]
        for key, words in (
            ("program", "the program alone, with torch"),
            ("mlflow", "+ guard, hashes and MLflow's run"),
            ("dvc", "+ DVC"),
            ("prefect", "+ Prefect and a process of DVC's own"),
            ("stage", "**all tools, per stage**"),
            ("run", "**once per run** (server, checks, the flow's MLflow run)"),
        ):
            lines.append(f"| {words} | {stages[key]['wall']:.2f} | {stages[key]['cpu']:.2f} |")
    if share := found.get("share"):
        lines += ["", f"Of a job of {found['job_stages']} stages in {found['job']:.0f} s: {100 * share:.1f} %."]
    if nothing := found.get("nothing"):
        lines += ["", "With nothing to do:", "", "| command | seconds | of the processor |", "|---|---:|---:|"]
        for name, words in (("dvc", "dvc repro"), ("run", "make run" if "make" in nothing["command"] else "the flow")):
            lines.append(f"| {words} | {nothing[name]['wall']:.2f} | {nothing[name]['cpu']:.2f} |")
    for what in MANY:
        if row := found.get(what):
            lines += [
                "",
                f"A {what} of {row['runs']} runs: {row['one']:.0f} s with one worker, {row['two']:.0f} s with two: "
                f"efficiency {row['efficiency']:.2f}. Two trainings without any tool, side by side on these cores: "
                f"{row['cores']:.2f}. So the {what} has {row['efficiency'] / row['cores']:.2f} of that.",
            ]
    if files := found.get("files"):
        lines += ["", "| files | dvc add | dvc status after it | memory at the peak |", "|---:|---:|---:|---:|"]
        for row in files["rows"]:
            peak = row["peak_bytes"] / 2**20
            lines.append(f"| {row['files']:,} | {row['add']:.1f} s | {row['status']:.1f} s | {peak:,.0f} MiB |")
        if "add_exponent" in files:
            words = ", ".join(f"{key} {files[f'{key}_exponent']:.2f}" for key in ("add", "status", "peak_bytes"))
            lines += ["", f"Exponents over the number of files, of the last two: {words}."]
    if shards := found.get("shards"):
        lines += ["", "| pictures | files | dvc add | dvc status | DVC's memory | listed in | with memory | prepare |"]
        lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for row in shards:
            peak, listed = row["peak_bytes"] / 2**20, row["list_bytes"] / 2**20
            dvc = f"{row['add']:.1f} s | {row['status']:.1f} s | {peak:,.0f} MiB"
            prepare = f"{row['list']:.2f} s | {listed:,.1f} MiB | {row['prepare']:.1f} s"
            lines.append(f"| {row['pictures']:,} | {row['files']:,} | {dvc} | {prepare} |")
        packed = [f"{row['pictures']:,} in {row['pack']:.1f} s" for row in shards if row["pack"]]
        lines += ["", f"Packed: {', '.join(packed)}."]
    return "\n".join(lines).strip()


def main() -> int:
    parser = distillation.parser_of("orchestration", str(__doc__))
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (stages nothing)")
    parser.add_argument("--repeats", type=int, default=3, help="of stages and nothing (3)")
    parser.add_argument("--job", type=float, help="seconds that the whole job takes here, for the tools' share of it")
    parser.add_argument("--runs", type=int, default=4, help="in the study, or the search (4)")
    parser.add_argument("--file", type=Path, help="a search, of which --runs trials are measured instead")
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000], help="how many (10000 100000)")
    options = parser.parse_args()
    parts = options.parts or ["stages", "nothing"]
    for part in parts:
        if part not in PARTS:
            parser.error(f"'{part}' is no part. Choose of: {', '.join(PARTS)}")
    if options.job and "stages" not in parts:
        parser.error("--job is for the share of `stages`. Name that part, too")
    if options.file and "search" not in parts:
        parser.error("--file is the search of the part `search`. Name that part, too")
    found: dict[str, Any] = {}
    try:
        root = repository_root()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if "stages" in parts:
                found["stages"] = measure_stages(root, folder / "chain" / "repository", options.repeats)
            if options.job:
                count = len(lineage.graph(root))
                found |= {"job": options.job, "job_stages": count}
                found["share"] = share_of(found["stages"], count, options.job)
            if "nothing" in parts:
                found["nothing"] = measure_nothing(root, options.repeats)
            for what in MANY:
                if what in parts:
                    found[what] = measure_workers(
                        root, folder / what, what, options.runs, options.file if what == "search" else None
                    )
            if "files" in parts:
                found["files"] = measure_files(folder / "files", options.files)
            if "shards" in parts:
                found["shards"] = measure_shards(folder / "shards", options.files)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(render(found))
    short = fallen_short(found)
    for line in short:
        print(line)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if options.check and short else 0


if __name__ == "__main__":
    sys.exit(main())
