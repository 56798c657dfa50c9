"""The model registry: which network is shipped, and why. Nothing in here decides which stages run.

A version of `thinner-NAME` is a candidate's files and the code that serves them, as MLflow's model, known again by
their SHA-256 (`_identity`): however often the same is brought, there is one version of it. Two aliases say where it
stands:

    challenger    what the pipeline made last
    champion      what is served; `thinner promote` makes the challenger champion, `thinner rollback` the one before it

Every decision, also one against, is written on the version: its description for people, its tags for programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import lineage
from tasks.record import candidates, mlflow_client
from thinner.errors import UserError
from thinner.evidence import shipping, statistics
from thinner.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
BEFORE = "champion.before"  # the versions that were champion when this one became it, the last one first: "3,1"
ROLLED_BACK = "rolled_back"  # why it is no longer champion
ALPHA = 0.05


@dataclass(frozen=True)
class Decision:
    """What was decided about a version of a model, and why."""

    model: str
    version: str
    promoted: bool
    reason: str


def model_name(params: Params) -> str:
    """`thinner-` and ship.name, or what data.source is called: torchvision:FashionMNIST, folder:data/raw/photos."""
    name = params.ship.name or Path(params.data.source.partition(":")[2]).stem
    return "thinner-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def register(root: Path, params: Params) -> tuple[str, str]:
    """Make sure that the registry has today's ship.candidate, as challenger; returns the model's name and the version.

    The same files behind the same code are registered once. Raises UserError where reports/ is missing or out of date,
    or nothing answers.
    """
    _check_results(root, params)
    client, experiment = mlflow_client.connect()
    with mlflow_client.reachable():
        return _register(client, experiment, root, params)


def _register(client: MlflowClient, experiment: str, root: Path, params: Params) -> tuple[str, str]:
    from mlflow.exceptions import RestException

    name, candidate = model_name(params), params.ship.candidate
    identity = _identity(candidate)
    if name not in [model.name for model in client.search_registered_models(f"name = '{name}'")]:
        words = f"The networks that Thinner made of {params.data.source}. `{CHAMPION}` is what is served."
        client.create_registered_model(name, description=words)
    same = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
    known = client.search_model_versions(f"name = '{name}' and {same}")
    if known:
        version = str(max(int(found.version) for found in known))  # some stores say 1, some "1"
    else:
        run_id = _run_of(client, experiment, root, candidate, identity)
        outputs = client.get_run(run_id).outputs
        assert outputs is not None  # log_model gave it one
        model_id = next(iter(outputs.model_outputs)).model_id
        made = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={**identity, "candidate": candidate, "git.commit": mlflow_client.commit()},
            description=_headline(candidate),
        )
        version = str(made.version)
    verdicts = shipping.read_verdicts(Path("reports/claims.json")).values()
    proven = sum(verdict["outcome"] == "proven" for verdict in verdicts)
    client.set_model_version_tag(name, version, "claims", f"{proven} of {len(verdicts)} proven")
    champion = _alias(client, name, CHAMPION)
    if champion is None or str(champion.version) != version:
        client.set_registered_model_alias(name, CHALLENGER, version)
    else:  # back to what is served already: nobody challenges it
        with contextlib.suppress(RestException):
            client.delete_registered_model_alias(name, CHALLENGER)
    return name, version


def _identity(candidate: str) -> dict[str, str]:
    """The tags by which a version is known again: its files, the code and the temperature that they are served with,
    the test images, and what it named for them."""
    return {
        "sha256": digest(candidates.folder_of(candidate)),
        candidates.SERVED: candidates.served_digest(candidate),
        candidates.TEST: candidates.test_digest(),
        candidates.PREDICTED: candidates.predictions_digest(candidate),
    }


def _run_of(client: MlflowClient, experiment: str, root: Path, candidate: str, identity: Mapping[str, str]) -> str:
    """The run of the candidate from today's evaluation; made now if MLflow did not answer when evaluate ran, or if the
    model that was recorded then has other code than would be served now."""
    stage_hash = lineage.locked_hashes(root).get("evaluate", "")
    found = candidates.find(client, experiment, candidate, stage_hash)
    if found is not None:
        tags = client.get_run(found).data.tags
        if any(tags.get(tag) != identity[tag] for tag in (candidates.SERVED, candidates.TEST, candidates.PREDICTED)):
            found = None
    if found is None:
        parent = mlflow_client.find_run(client, experiment, "evaluate", stage_hash)
        (found,) = candidates.record(client, experiment, stage_hash, parent, [candidate])
    return found


def promote(root: Path, params: Params, *, other_images: bool = False, again: bool = False) -> Decision:
    """Make today's ship.candidate champion, if every claim is proven and it is not worse than the champion.

    "Not worse": on the same test images, a score test shows that its accuracy is at most ship.margin_points below
    the champion's (statistics.accuracy_difference). The first champion has to pass the claims alone.

    ``other_images``: judge by the claims alone where the champion was tested on other images. ``again``: promote also
    what was rolled back, and beside a later challenger. The reason is written on the version, for and against.

    Raises:
        UserError: results are missing or out of date; the champion was tested on other images; it was rolled back.
    """
    client, _ = mlflow_client.connect()
    with mlflow_client.reachable():
        challenger = _alias(client, model_name(params), CHALLENGER)
    name, version = register(root, params)
    with mlflow_client.reachable():
        # made elsewhere, as by the schedule
        later = challenger if challenger is not None and int(challenger.version) > int(version) else None
        if later is not None and not again:
            client.set_registered_model_alias(name, CHALLENGER, later.version)
            raise UserError(
                f"{name}: what lies here is version {version}, and the {CHALLENGER} is version {later.version}, "
                f"of commit {later.tags.get('git.commit', 'unknown')[:12]}. To promote that, bring it here and "
                "run it: git merge its branch, thinner run. To promote what lies here all the same: thinner promote "
                "--again"
            )
        mine = client.get_model_version(name, version)
        champion = _alias(client, name, CHAMPION)
        if champion is not None and str(champion.version) == version:
            return Decision(name, version, True, f"it is {CHAMPION} already: {mine.tags.get('reason', '')}")
        if ROLLED_BACK in mine.tags and not again:
            raise UserError(
                f"{name} version {version} was rolled back: {mine.tags[ROLLED_BACK]}. "
                "To promote it all the same: thinner promote --again"
            )
        bar = None
        if champion is not None:
            bar = _bar(client, champion, mine, other_images)
        promoted, reason = decide(
            list(shipping.read_verdicts(Path("reports/claims.json")).values()),
            shipping.read_targets(Path("reports")),
            params.ship.candidate,
            bar,
            str(champion.version) if champion else None,
            params.ship.margin_points,
            params.run.seed,
        )
        if not promoted:
            _write(client, mine, f"not promoted: {reason}")
            return Decision(name, version, False, reason)
        # the alias after all that a rollback asks for: cut off before it, nothing has changed for those who serve
        if champion is not None:
            earlier = [number for number in _before(champion) if number != version]
            client.set_model_version_tag(name, version, BEFORE, ",".join([str(champion.version), *earlier]))
        if ROLLED_BACK in mine.tags:
            client.delete_model_version_tag(name, version, ROLLED_BACK)
        now = _alias(client, name, CHAMPION)
        if (now and now.version) != (champion and champion.version):
            raise UserError(f"{name}: another version became {CHAMPION} meanwhile. See: thinner models; then once more")
        client.set_registered_model_alias(name, CHAMPION, version)
        named = _alias(client, name, CHALLENGER)
        if named is not None and str(named.version) == version:  # another may have come meanwhile
            client.delete_registered_model_alias(name, CHALLENGER)
        if later is not None:
            client.set_registered_model_alias(name, CHALLENGER, later.version)
        _write(client, mine, f"{CHAMPION}: {reason}")
        return Decision(name, version, True, reason)


def _bar(client: MlflowClient, champion: ModelVersion, mine: ModelVersion, other_images: bool) -> Any:
    """Which test images the challenger and the champion had right, [images] each; None: there is nothing to compare."""
    mine_on, its_on = (version.tags[candidates.TEST] for version in (mine, champion))
    if mine_on != its_on:
        if other_images:
            return None
        raise UserError(
            f"{mine.name}: version {mine.version} was tested on the images {mine_on[:12]}, and the {CHAMPION}, "
            f"version {champion.version}, on others: {its_on[:12]}. They cannot be compared. Go back to its "
            f"images (git checkout {champion.tags.get('git.commit', 'COMMIT')[:12]}) and put the new network to them, "
            "or judge by the claims alone: thinner promote --other-images"
        )
    own, other = (candidates.fetch_predictions(client, str(version.run_id)) for version in (mine, champion))
    if own is None or other is None:
        raise UserError(
            f"{mine.name}: the run of version {mine.version if own is None else champion.version} keeps no "
            f"{candidates.PREDICTIONS}, without which nothing can be compared. "
            "To judge by the claims alone: thinner promote --other-images"
        )
    return tuple(_right(found) for found in (own, other))


def _right(found: Mapping[str, Any]) -> Any:
    (key,) = (key for key in found if key.startswith("predictions."))
    return found[key] == found["labels"]


def decide(
    verdicts: list[dict[str, Any]],
    targets: list[dict[str, Any]],
    candidate: str,
    bar: Any,
    champion: str | None,
    margin_points: float,
    seed: int,
) -> tuple[bool, str]:
    """Whether to promote, and the reason in a sentence. ``bar``: who was right, challenger's and champion's images."""
    if missing := shipping.open_points(candidate, verdicts, targets):
        return False, f"{candidate} is not ready to ship: {'; '.join(missing)}"
    claims = f"all {len(verdicts)} claims are proven"
    if bar is None:
        why = "nothing was champion before" if champion is None else f"version {champion} was tested on other images"
        return True, f"{claims}; {why}"
    margin = margin_points / 100
    estimate = statistics.accuracy_difference(*bar, margin=-margin, seed=seed)
    holds = estimate.p_value is not None and estimate.p_value <= ALPHA and estimate.effect > -margin
    effect, low, high = (100 * x for x in (estimate.effect, estimate.low, estimate.high))
    return holds, (
        f"{claims}; against version {champion}: {effect:+.2f} points [{low:+.2f}, {high:+.2f}] "
        f"on {estimate.count} images, "
        f"{'shown' if holds else 'not shown'} to be at most {margin_points:g} points worse "
        f"(p = {estimate.p_value:.2g}, {estimate.method})"
    )


def rollback(params: Params, why: str) -> Decision:
    """Give the alias `champion` back to the last version that had it before and was not itself rolled back, and write
    why on the one that loses it.

    Raises:
        UserError: there is no champion, or it had no predecessor, or all of them were rolled back.
    """
    client, _ = mlflow_client.connect()
    with mlflow_client.reachable():
        name = model_name(params)
        champion = _alias(client, name, CHAMPION)
        if champion is None:
            raise UserError(f"{name} has no {CHAMPION}, so there is nothing to take back. See: thinner models")
        earlier = _before(champion)
        if not earlier:
            raise UserError(f"{name} version {champion.version} was the first {CHAMPION}: there is none before it")
        there = {str(found.version): found for found in client.search_model_versions(f"name = '{name}'")}
        before = next((number for number in earlier if number in there and ROLLED_BACK not in there[number].tags), None)
        if before is None:
            raise UserError(
                f"{name} version {champion.version} stays {CHAMPION}: what was it before ({', '.join(earlier)}) was "
                "rolled back or deleted as well. Make another network champion: thinner run, then thinner promote"
            )
        # marked first: cut off between the two, the same command goes on to the same version
        client.set_model_version_tag(name, champion.version, ROLLED_BACK, why)
        client.set_registered_model_alias(name, CHAMPION, before)
        _write(client, champion, f"rolled back: {why}")
        reason = f"version {champion.version} was rolled back: {why}"
        _write(client, there[before], f"{CHAMPION} again: {reason}")
        return Decision(name, before, True, reason)


def _before(champion: ModelVersion) -> list[str]:
    """The versions that were champion before this one became it, the last one first."""
    tag = champion.tags.get(BEFORE)
    return tag.split(",") if tag else []


def versions(params: Params) -> list[dict[str, str]]:
    """Every version of the model, newest first: version, alias, candidate, claims, when, reason."""
    client, _ = mlflow_client.connect()
    with mlflow_client.reachable():
        name = model_name(params)
        aliases = {
            str(found.version): alias
            for alias in (CHALLENGER, CHAMPION)
            if (found := _alias(client, name, alias)) is not None
        }
        return [
            {
                "version": str(found.version),
                "alias": aliases.get(str(found.version), ""),
                "candidate": found.tags.get("candidate", ""),
                "claims": found.tags.get("claims", ""),
                "made": datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
                "reason": found.tags.get("reason", ""),
            }
            for found in sorted(
                client.search_model_versions(f"name = '{name}'"), key=lambda found: int(found.version), reverse=True
            )
        ]


def digest(folder: Path) -> str:
    """SHA-256 of all files in a candidate's folder, their names included."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _check_results(root: Path, params: Params) -> None:
    for path in (Path("reports/metrics.json"), Path("reports/claims.json")):
        if not path.is_file():
            raise UserError(f"there is no {path} yet, so nothing can be judged. Make it: thinner run")
    for name, why in lineage.all_reasons(root, [node.name for node in lineage.graph(root)]).items():
        if why:
            raise UserError(
                f"the results are not those of what is here: {name} is out of date ({why[0]}). "
                "Bring everything up to date: thinner run"
            )
    if params.ship.candidate not in shipping.read_metrics(Path("reports/metrics.json")):
        raise UserError(f"ship.candidate: evaluate did not measure '{params.ship.candidate}'. Run: thinner run")


def _headline(candidate: str) -> str:
    row = shipping.read_metrics(Path("reports/metrics.json"))[candidate]
    return (
        f"{candidate}: accuracy {row['accuracy']:.2%}, {row['params']:,} parameters, {row['file_bytes']:,} bytes, "
        f"{row['runtime']}"
    )


def _alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise


def _write(client: MlflowClient, version: ModelVersion, reason: str) -> None:
    """The decision on the version: the last one as tag `reason`, all of them below its headline."""
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    client.set_model_version_tag(version.name, version.version, "reason", reason)
    text = version.description or ""
    client.update_model_version(version.name, version.version, description=f"{text}\n\n{moment}: {reason}")
