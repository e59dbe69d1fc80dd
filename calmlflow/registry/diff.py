"""Compare two versions: parameters, scores, data, gate and files."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.manifest import MANIFEST, read_manifest
from calmlflow.registry.versions import Version, find_version
from calmlflow.results.scores import SCORES, headlines
from calmlflow.settings import NETWORKS

Difference = dict[str, Any]
Pairs = dict[str, tuple[str | None, str | None]]


def compare_versions(a: str, b: str, model: str) -> Difference:
    """Compare two versions, which are named as for `find_version`; an InputError where one does not exist.

    Returns
    -------
    dict
        Ready for JSON. ``a`` and ``b``: ``model``, ``version`` and ``problems`` (what could not be read, a sentence
        each). ``params`` and ``gate`` that differ, all ``scores`` and ``data``: name -> the value of each, or None;
        parameters of a network's own run begin with its name. ``files`` of the bundle: path -> same, changed,
        ``only in A`` or ``only in B``, by SHA-256.
    """
    client = MlflowClient()
    versions = [find_version(text, model) for text in (a, b)]
    sides = [_side(client, version) for version in versions]
    pairs = {part: _pairs(sides[0][part], sides[1][part]) for part in ("params", "scores", "data", "gate", "files")}
    params = {name: pair for name, pair in pairs["params"].items() if pair[0] != pair[1]}
    return {
        **{
            letter: {"model": version.model, "version": version.number, "problems": side["problems"]}
            for letter, version, side in zip("ab", versions, sides, strict=True)
        },
        # What a network's run repeats of the run around it is said once.
        "params": {name: pair for name, pair in params.items() if pair != params.get(name.partition(".")[2])},
        "scores": pairs["scores"],
        "data": pairs["data"],
        "gate": {name: pair for name, pair in pairs["gate"].items() if pair[0] != pair[1]},
        "files": {
            path: "only in B" if a is None else "only in A" if b is None else "same" if a == b else "changed"
            for path, (a, b) in pairs["files"].items()
        },
    }


def _pairs(left: Mapping[str, str], right: Mapping[str, str]) -> Pairs:
    return {name: (left.get(name), right.get(name)) for name in sorted({*left, *right})}


def _side(client: MlflowClient, version: Version) -> dict[str, Any]:
    tags = version.tags
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    data = {name: tags[name] for name in ("data", "jobs") if name in tags}
    files: dict[str, str] = {}
    problems: list[str] = []
    runs = {"": version.run_id} | {f"{network}.": tags.get(f"run.{network}", "") for network in NETWORKS}
    for prefix, run_id in runs.items():
        if not run_id or (prefix and run_id == version.run_id):
            continue
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            problems.append(f"run {run_id} cannot be read ({error.error_code})")
            continue
        params |= {f"{prefix}{name}": value for name, value in run.data.params.items()}
        if not prefix:
            metrics = run.data.metrics
            for item in run.inputs.dataset_inputs if run.inputs else ():
                context = next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), "jobs")
                data[f"digest of {context} jobs"] = item.dataset.digest
    scores = {name.removeprefix("score."): value for name, value in tags.items() if name.startswith("score.")}
    if not scores:
        # A version from before there were tags.
        of_run = {f"{target}.{name}": f"test_{target}_{name}" for target in SCORES for name in headlines(target)}
        scores = {name: f"{metrics[metric]:.6g}" for name, metric in of_run.items() if metric in metrics}
    newest = tags.get("newest_job", "")
    if newest.isdecimal() and 0 < int(newest) < 1e11:
        data["newest job"] = datetime.fromtimestamp(int(newest), UTC).date().isoformat()
    gate = {name.removeprefix("gate."): value for name, value in tags.items() if name.partition(".")[0] == "gate"}
    try:
        files = _bundle_files(version)
    except CalmlflowError as error:
        problems.append(str(error))
    return {"params": params, "scores": scores, "data": data, "gate": gate, "files": files, "problems": problems}


def _bundle_files(version: Version) -> dict[str, str]:
    """File -> SHA-256, from the manifest alone."""
    uri = f"models:/{version.model}/{version.number}/artifacts/bundle/{MANIFEST}"
    with tempfile.TemporaryDirectory(prefix="calmlflow-") as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except Exception as error:
            # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
            raise CalmlflowError(f"{MANIFEST} of {version} cannot be read ({type(error).__name__})") from error
        try:
            return dict(read_manifest(found.parent)["sha256"])
        except InputError as error:
            raise CalmlflowError(str(error).replace(folder, str(version))) from error


def as_text(difference: Difference) -> str:
    """Two versions side by side, for a person."""
    sides = [(letter.upper(), difference[letter]) for letter in "ab"]
    lines = [f"{letter}: version {side['version']} of {side['model']}" for letter, side in sides]
    lines += [f"not known of {letter}: {text}" for letter, side in sides for text in side["problems"]]
    for title, part in (
        ("parameters that differ", "params"),
        ("scores on their own held-out jobs", "scores"),
        ("data", "data"),
        ("gate, where it differs", "gate"),
    ):
        pairs: Pairs = difference[part]
        lines += ["", title + ("" if pairs else ": none")]
        width = max(map(len, pairs), default=0) + 2
        column = max((len(left or "-") for left, _ in pairs.values()), default=0) + 2
        lines += [f"  {name:<{width}}{left or '-':<{column}}{right or '-'}" for name, (left, right) in pairs.items()]
    counts = Counter(difference["files"].values())
    lines += ["", "files of the bundle: " + (", ".join(f"{n} {kind}" for kind, n in counts.items()) or "not known")]
    lines += [f"  {kind:<11}{path}" for path, kind in difference["files"].items() if kind != "same"]
    # Text from the registry may not speak to the terminal, nor end a line.
    return "\n".join("".join(c if c.isprintable() else " " for c in line).rstrip() for line in lines)
