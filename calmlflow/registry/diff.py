"""Compare two versions: parameters, scores, data, gate and files."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.manifest import MANIFEST, read_manifest
from calmlflow.registry.versions import Version, find_version
from calmlflow.results.scores import SCORES, headlines
from calmlflow.settings import NETWORKS

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class Side:
    """What is known of one version; ``problems`` says what could not be read, a sentence each."""

    name: str
    version: int
    params: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    gate: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Two versions side by side.

    Attributes
    ----------
    a, b : Side
    params, gate : dict of str to pair of str
        Those that are not the same; None where one has none. Parameters of a network's own run begin with its name.
    scores, data : dict of str to pair of str
        All of them.
    files : dict of str to str
        Files of the bundle: same, changed, ``only in A`` or ``only in B``, by SHA-256.
    """

    a: Side
    b: Side
    params: dict[str, Pair]
    scores: dict[str, Pair]
    data: dict[str, Pair]
    gate: dict[str, Pair]
    files: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """The same, ready for JSON."""
        return {
            "a": {"model": self.a.name, "version": self.a.version, "problems": list(self.a.problems)},
            "b": {"model": self.b.name, "version": self.b.version, "problems": list(self.b.problems)},
            **{part: getattr(self, part) for part in ("params", "scores", "data", "gate", "files")},
        }


def compare_versions(a: str, b: str, model: str) -> Difference:
    """Compare two versions.

    Parameters
    ----------
    a, b : str
        A number, a stage, an ``@alias``, or ``models:/NAME/`` and one of these.
    model : str
        Registered model, where no name is given.

    Raises
    ------
    InputError
        There is no such version.
    CalmlflowError
        The registry cannot be asked.
    """
    client = MlflowClient()
    left, right = (_side(client, find_version(text, model)) for text in (a, b))
    files = {}
    for path in sorted({*left.files, *right.files}):
        digests = left.files.get(path), right.files.get(path)
        files[path] = "only in B" if digests[0] is None else "only in A" if digests[1] is None else "changed"
        if digests[0] == digests[1]:
            files[path] = "same"
    params = _pairs(left.params, right.params, differing=True)
    return Difference(
        left,
        right,
        # What a network's run repeats of the run around it is said once.
        params={name: pair for name, pair in params.items() if pair != params.get(name.partition(".")[2])},
        scores=_pairs(left.scores, right.scores),
        data=_pairs(left.data, right.data),
        gate=_pairs(left.gate, right.gate, differing=True),
        files=files,
    )


def _pairs(left: Mapping[str, str], right: Mapping[str, str], differing: bool = False) -> dict[str, Pair]:
    pairs = {name: (left.get(name), right.get(name)) for name in sorted({*left, *right})}
    return {name: pair for name, pair in pairs.items() if not differing or pair[0] != pair[1]}


def _side(client: MlflowClient, version: Version) -> Side:
    tags = dict(version.tags)
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    digests: dict[str, str] = {}
    problems: list[str] = []
    runs = {"": version.run_id} | {f"{network}.": tags.get(f"run.{network}") for network in NETWORKS}
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
                digests[f"digest of {context} jobs"] = item.dataset.digest
    scores = {name.removeprefix("score."): value for name, value in tags.items() if name.startswith("score.")}
    if not scores:
        # A version from before there were tags.
        of_run = {f"{target}.{name}": f"test_{target}_{name}" for target in SCORES for name in headlines(target)}
        scores = {name: f"{metrics[metric]:.6g}" for name, metric in of_run.items() if metric in metrics}
    data = {name: tags[name] for name in ("data", "jobs") if name in tags} | digests
    newest = tags.get("newest_job", "")
    if newest.isdecimal() and 0 < int(newest) < 1e11:
        data["newest job"] = datetime.fromtimestamp(int(newest), UTC).date().isoformat()
    try:
        files = _bundle_files(version)
    except CalmlflowError as error:
        files = {}
        problems.append(str(error))
    return Side(
        version.model,
        version.number,
        params,
        scores,
        data,
        {name.removeprefix("gate."): value for name, value in tags.items() if name.partition(".")[0] == "gate"},
        files,
        tuple(problems),
    )


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
    a, b = difference.a, difference.b
    lines = [f"A: version {a.version} of {a.name}", f"B: version {b.version} of {b.name}"]
    lines += [f"not known of {letter}: {text}" for letter, side in (("A", a), ("B", b)) for text in side.problems]
    for title, pairs in (
        ("parameters that differ", difference.params),
        ("scores on their own held-out jobs", difference.scores),
        ("data", difference.data),
        ("gate, where it differs", difference.gate),
    ):
        lines += ["", title + ("" if pairs else ": none")]
        width = max(map(len, pairs), default=0) + 2
        column = max((len(left or "-") for left, _ in pairs.values()), default=0) + 2
        lines += [f"  {name:<{width}}{left or '-':<{column}}{right or '-'}" for name, (left, right) in pairs.items()]
    counts = Counter(difference.files.values())
    lines += ["", "files of the bundle: " + (", ".join(f"{n} {kind}" for kind, n in counts.items()) or "not known")]
    lines += [f"  {kind:<11}{path}" for path, kind in difference.files.items() if kind != "same"]
    # Text from the registry may not speak to the terminal, nor end a line.
    return "\n".join("".join(c if c.isprintable() else " " for c in line).rstrip() for line in lines)
