"""Networks that were trained elsewhere become a registered version, scored on given jobs."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.records import Checked
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.backend import keras
from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.keras_file import parse_network
from calmlflow.networks.onnx import export_onnx
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.killtime import COVERAGE, KillTime
from calmlflow.predictor.manifest import write_manifest
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import log_model, register
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.results.checks import CLASSIFIER_HISTORY, REGRESSOR_HISTORY
from calmlflow.results.classification import classification_results
from calmlflow.results.files import write_results
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.regression import regression_results
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.results.table import training_table
from calmlflow.runs.adoption_source import SourceFile, read_scaling, read_source
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.summary import SHOWN
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS, hide_password
from calmlflow.storage.files import new_tree

OPERATIONAL_KILL_TIME = KillTime(edges_s=(), factors=(6.0,), coverage=COVERAGE, jobs=(0,))
"""Kill times as operation has them: six times the prediction. No job has calibrated them."""


@dataclass(frozen=True)
class AdoptionRequest:
    """What the user of the entry point ``adopt`` says; see the table in the README."""

    source: str
    data: str = "sample"
    seed: int = 0
    output: str = "data"
    stage: str = "None"


@dataclass
class Adoption:
    """What an adoption left behind; ``scores`` holds, by target, those of the network (``test``) and the ``floor``."""

    run_id: str
    jobs: int = 0
    tree: Path = Path()
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    promoted: str = ""


def adopt(request: AdoptionRequest) -> Adoption:
    """Register networks that were trained elsewhere, in one run; the first challenger then has a champion to beat.

    They are served as operation serves them: the most probable bin, and 6 x the predicted wallclock as kill time. Which
    jobs they were trained on is not known, so no job counts as unlike those, and every given job is scored.

    Parameters
    ----------
    request : AdoptionRequest
        ``source`` as for `calmlflow.runs.adoption_source.read_source`, ``data`` as for `read_jobs`.

    Raises
    ------
    CalmlflowError
        The run is marked FAILED, no tree is left and nothing is registered. Only a promotion that fails, or that the
        gate refuses, leaves tree and versions.
    """
    with tracked_run("adopt") as run:
        stage = None if request.stage == "None" else settings.parse_stage(request.stage)
        log_new_params({**asdict(request), **environment_params()})
        files = read_source(request.source)
        scaling = read_scaling(files["scaling"])
        checked = read_jobs(request.data, request.seed)
        jobs = checked.valid
        sizes = {"n_jobs": len(jobs), "n_quarantined": len(checked.quarantine)}
        for network in NETWORKS:
            content = files[network].content
            sizes[f"bytes_{network}"] = len(content)
            log_new_params({f"sha256_{network}": hashlib.sha256(content).hexdigest()})
        log_new_params(sizes)
        mlflow.log_input(lineage(jobs, request.data, "testing"), context="testing")
        outcome = Adoption(run.info.run_id, len(jobs))
        with new_tree(Path(request.output)) as tree:
            predictions = write_models(files, scaling, jobs, tree.partial / "models")
            outcome.scores = _write_scores(jobs, predictions, tree.partial / "results")
            _write_tables(checked, predictions, tree.partial / "data")
            for target, kinds in outcome.scores.items():
                for kind, scores in kinds.items():
                    mlflow.log_metrics({f"{kind}_{target}_{name}": value for name, value in scores.items()})
            mlflow.log_artifacts(str(tree.partial))
            named = {NETWORK_MODELS[network]: (network,) for network in NETWORKS} | {BUNDLE_MODEL: NETWORKS}
            metadata = {"source": request.source, "data": request.data, "seed": request.seed}
            models = {
                name: log_model(tree.partial / "models", networks, name, metadata) for name, networks in named.items()
            }
        outcome.tree = tree.final
        origin = Lineage(
            data=f"adopted from {request.source}",
            jobs=0,
            newest_job=0,
            seed=None,
            scores={target: kinds["test"] for target, kinds in outcome.scores.items()},
            runs=dict.fromkeys(NETWORKS, run.info.run_id),
        )
        outcome.versions = register(models, origin)
        if stage:
            judged = PromotionRequest(stage, outcome.versions[BUNDLE_MODEL], BUNDLE_MODEL)
            outcome.promoted = promote_in_run(judged, nested=True)
    return outcome


def write_models(files: Mapping[str, SourceFile], scaling: Scaling, jobs: pd.DataFrame, models: Path) -> Predictions:
    """Write a folder ``models`` as a training leaves it, and give what its bundle says of every job."""
    rows = distinct_rows(jobs[list(FEATURES)].to_numpy(dtype=float))
    inputs = scaling.apply(rows.features)
    for network in NETWORKS:
        model = parse_network(files[network].content, files[network].shown, network)
        folder = models / network
        folder.mkdir(parents=True)
        (folder / f"{network}.keras").write_bytes(files[network].content)
        _export(model, files[network].shown, folder / f"{network}.onnx", inputs)
    (models / "tx_data.json").write_text(scaling.to_json())
    (models / "killtime.json").write_text(OPERATIONAL_KILL_TIME.to_json())
    write_manifest(models)
    by_row = Bundle.load(models).predict(rows.features)
    for network in NETWORKS:
        answers = by_row["probabilities" if network == "mem_clf" else PREDICTED[TARGETS[network]]]
        if not np.all(np.isfinite(answers)):
            raise InputError(
                f"{files[network].shown} gives an answer that is not finite; expected numbers for every job"
            )
    return {name: column[rows.row_of_job] for name, column in by_row.items()}


def _export(model: keras.Model, shown: Path, path: Path, inputs: NDArray[np.float32]) -> None:
    try:
        export_onnx(model, path, inputs)
    except CalmlflowError:
        raise
    except Exception as error:
        # What tf2onnx cannot put into ONNX, onnxruntime cannot run; each has errors of its own.
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{shown} cannot be run as ONNX ({reason}); expected activations that ONNX has") from None


def _write_scores(
    jobs: pd.DataFrame, predictions: Predictions, results: Path
) -> dict[str, dict[str, dict[str, float]]]:
    """Score every target beside its floor, and write the results of the networks as a training leaves them.

    What is said there of epochs and of training jobs is left out: nobody knows it here.
    """
    features = jobs[list(FEATURES)].to_numpy(dtype=float)
    scores = {}
    for target, prediction in PREDICTED.items():
        test_idx = pd.Series(jobs[target].to_numpy(), index=pd.Index(jobs["ipst"], name="ipst"), name=target)
        if target == "mem_bin":
            none = dict.fromkeys(CLASSIFIER_HISTORY, ())
            classified = classification_results(test_idx, predictions["probabilities"], none, (np.nan, np.nan))
            write_results(dataclasses.replace(classified, history=None, acc_loss=None), results / target)
            floor = classification_floor(features, test_idx, jobs["wallclock"])
        else:
            none = dict.fromkeys(REGRESSOR_HISTORY, ())
            regressed = regression_results(test_idx, predictions[prediction], none, np.nan)
            write_results(dataclasses.replace(regressed, history=None, loss=None), results / target)
            floor = regression_floor(features, test_idx)
        scores[target] = {"test": score_predictions(target, jobs, predictions), "floor": floor}
    return scores


def _write_tables(checked: Checked, predictions: Predictions, folder: Path) -> None:
    folder.mkdir()
    split = np.full(len(checked.valid), "test")
    columns = {name: predictions[name] for name in PREDICTED.values()}
    training_table(checked.valid, columns, split).to_csv(folder / "latest.csv", index=False)
    if len(checked.quarantine):
        checked.quarantine.to_csv(folder / "quarantine.csv", index=False)
        total = len(checked.valid) + len(checked.quarantine)
        say(f"quarantined {len(checked.quarantine):,} of {total:,} records: see data/quarantine.csv of the run")


def print_adoption(outcome: Adoption) -> None:
    """Print scores beside the floor, and what was registered."""
    table = Table("target", "score", title=f"Scores on {outcome.jobs:,} jobs", title_justify="left")
    for heading in ("network", "floor"):
        table.add_column(heading, justify="right")
    for target, formats in SHOWN.items():
        test, floor = outcome.scores[target]["test"], outcome.scores[target]["floor"]
        for name, text in formats.items():
            if name in test:
                table.add_row(target, name, text.format(test[name]), text.format(floor[name]) if name in floor else "")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("floor: the best that any function of the nine features could score on these very jobs")
    for model, version in outcome.versions.items():
        console.print(f"registered: {model} version {version}")
    if outcome.promoted:
        console.print(f"promoted:   {outcome.promoted}")
    console.print(f"results:    {outcome.tree}")
    console.print(f"run:        {outcome.run_id} on {hide_password(settings.tracking_uri())}")
