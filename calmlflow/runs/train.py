"""Train the networks in one MLflow run: read, fit, write the tree, log, register, promote."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from numpy.typing import NDArray

from calmlflow import settings
from calmlflow.console import progress, say
from calmlflow.errors import InputError
from calmlflow.jobs.records import Checked
from calmlflow.jobs.stores.open import open_store
from calmlflow.jobs.upsert import check_writable, write_back
from calmlflow.networks.architectures import HIDDEN
from calmlflow.networks.config import read_config, read_found_on
from calmlflow.networks.rows import distinct_rows
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.decision import MAX_RISK
from calmlflow.predictor.evidence import Finished
from calmlflow.registry.assemble import assemble, runs_of_version
from calmlflow.registry.held_out import trained_on
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import LoggedModel, log_model, register
from calmlflow.registry.tracking import environment_params, lineage, log_history, log_new_params, noting, tracked_run
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.comparison import Interval, compare_predictions, score_intervals
from calmlflow.results.files import write_results
from calmlflow.results.plots.classification import classification_plots
from calmlflow.results.plots.common import Predict, headline_figures
from calmlflow.results.plots.data import data_plots
from calmlflow.results.plots.regression import regression_plots
from calmlflow.results.regression import RegressionResults
from calmlflow.results.report.training import ReportContent, report_html
from calmlflow.results.scores import FEWEST_JUDGED, PREDICTED, score_predictions
from calmlflow.results.table import COUNTS, PREDICTIONS, PROBABILITIES, training_table, with_answers
from calmlflow.runs.baselines import champion, other_seeds, over_seeds, random_forest
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.fit import ANSWERS, Fit, fit_answers, fit_network
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.ship import send_training
from calmlflow.runs.summary import Intervals, Outcome, Scores, describe
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS
from calmlflow.storage.archive import pack
from calmlflow.storage.files import new_tree
from calmlflow.storage.s3 import parse_s3

# Of the answers the report shows these, of the networks all.
ANSWER_PLOTS = {
    "confusion_counts", "confusion_decided_counts", "calibration", "calibration_by_bin", "errors_by_instrument",
    "errors_decided_by_instrument", "predicted_against_actual", "residuals_by_detector",
}  # fmt: skip

FEWEST_KNOWN = 0.5
"""Share of the datasets behind the champion's evidence that a store is expected to hold when evidence is read anew."""

NEXT_STEPS = (
    "Open next: `report.html` among the artifacts, with every plot; `mlflow run . -e compare` for the paired "
    "differences to the version in Production; `calmlflow promote` to ask the gate."
)


@dataclass(frozen=True)
class TrainingRequest:
    """Options of a training entry point; see docs/reference.md."""

    data: str = "sample"
    output: str = "data"
    seed: int = 0
    test_size: float = 0.2
    split: str = "programme"
    register: bool = True
    stage: str = "None"
    config: str = "default"
    risk: float = 0.0
    writeback: bool = False
    destination: str = "none"


class Laps:
    """Seconds of each part of a command: a lap ends a part, and one part may have several."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def train(
    request: TrainingRequest, networks: Sequence[str] = NETWORKS, bundle: bool = True, nested: bool = False
) -> Outcome:
    """Train networks in one run, whose artifacts are the output tree and the logged models.

    With ``bundle``, networks that are not trained are taken from the version in Production, evidence corrects all
    three, and each training is a child run; otherwise ``networks`` is one, and stays alone. With ``register``, each
    trained network and the bundle become registered versions; with a ``stage``, the bundle (or the one network) is
    promoted. A failure before the tree is complete leaves no tree and registers nothing; one of the tracking server
    after that leaves the tree, and a promotion that fails leaves both.
    """
    name = "main" if bundle else TARGETS[networks[0]]
    taken = tuple(network for network in NETWORKS if bundle and network not in networks)
    with tracked_run(name, nested) as run, tempfile.TemporaryDirectory(prefix="calmlflow-") as scratch:
        stage, configs = _check(request), read_config(request.config)
        clock = Laps()

        # Read. The champion first: a promotion of this very run could make it its own champion.
        found = champion(needed_for=taken)
        if found:
            mlflow.set_tag("champion_version", found.version)
        clock.lap("references")
        data = load_training_data(request.data, request.seed, request.test_size, request.split)
        sizes = data.sizes()
        for warning in searched_on_test_jobs(data, request):
            say(warning)
        own_params = {
            name: {"network": name, "hidden_layers": "-".join(map(str, HIDDEN[name])), **asdict(configs[name])}
            for name in networks
        }
        only = {"only": (",".join(networks) or "evidence") if taken else "all"} if bundle else own_params[networks[0]]
        log_new_params({**asdict(request), **only, **sizes, **environment_params()})
        parts = {"training": data.train, "testing": data.test}
        # Made once for all runs: MLflow looks through the whole table each time.
        inputs = [
            DatasetInput(
                lineage(data.jobs.iloc[part], request.data, context)._to_mlflow_entity(),
                [InputTag(MLFLOW_DATASET_CONTEXT, context)],
            )
            for context, part in parts.items()
        ]
        MlflowClient().log_inputs(run.info.run_id, inputs)
        clock.lap("read")
        scores: dict[str, dict[str, dict[str, float]]] = {}
        champion_answers = found.answers(data) if found else {}
        for target, prediction in PREDICTED.items():
            if prediction in champion_answers:
                scores[target] = {"champion": score_predictions(target, data.jobs.iloc[data.test], champion_answers)}
        clock.lap("references")

        with new_tree(Path(request.output)) as tree:
            models = tree.partial / "models"
            runs = runs_of_version(found.version, taken) if found else {}
            judged = _new_to(data, runs.values(), taken) if taken else data
            others = other_seeds(run.info.run_id)
            # From here on no word to the tracking server until the tree is whole: an outage costs no training.
            predictions: Predictions = {}
            fits: dict[str, Fit] = {}
            intervals: dict[str, dict[str, Interval]] = {}
            figures: dict[str, dict[str, go.Figure]] = {}
            for network in networks:
                target = TARGETS[network]
                with progress(f"training {network}", "epochs") as show:
                    fit = fit_network(
                        network, data, configs[network], request.seed, models, request.risk,
                        lambda done, total, loss: show(done, total, f"validation loss {loss:.4g}"),
                    )  # fmt: skip
                clock.lap(f"train_{network}")
                forest = random_forest(data, target, request.seed)
                scores[target] = dict(test=fit.scores, floor=fit.floor, forest=forest, **scores.get(target, {}))
                intervals[target] = held_out_intervals(target, data, fit.predictions)
                predictions |= fit.predictions
                fits[network] = fit
                clock.lap("references")
                # With evidence, the kill times that are served are judged below.
                if fit.warning and not bundle:
                    say(fit.warning)
                write_results(fit.results, tree.partial / "results" / target)
                figures[target] = _network_plots(network, fit, data, models)
            # Each alone, before evidence corrects them and their kill times.
            own_models = Path(shutil.copytree(models, Path(scratch) / "models")) if networks else models
            own_intervals = dict(intervals)
            alone = {target: kinds["test"] for target, kinds in scores.items() if "test" in kinds}
            own_scores = alone
            if bundle:
                models.mkdir(exist_ok=True)
                champion_evidence = found.bundle.evidence if found and taken else None
                if found and taken:
                    assemble(models, found.folder)
                answer = fit_answers(fits, judged, models, champion_evidence)
                if answer.warning:
                    say(answer.warning)
                share = champion_evidence.share_in(Finished.of(data.jobs)) if champion_evidence else 1.0
                if share < FEWEST_KNOWN:
                    say(
                        f"warning: {request.data} holds {share:.0%} of the datasets behind the evidence of version "
                        f"{found.version if found else ''}, which that of this store replaces; expected a store with "
                        "all finished jobs"
                    )
                predictions = answer.networks
                own_scores = answer.scores
                for target, results in answer.results.items():
                    scores[target] = {**scores.get(target, {}), "answer": answer.scores[target]}
                    intervals[target] = held_out_intervals(target, judged, answer.predictions)
                    write_results(results, tree.partial / "results" / "answer" / target)
                clock.lap("evidence")
            table = write_tables(judged, predictions, tree.partial / "data")
            shown = table
            if bundle:
                shown = with_answers(table, write_answers(judged, answer.predictions, tree.partial / "data"))
                figures["answer"] = {
                    f"{target}-{name}": figure
                    for target, results in answer.results.items()
                    for name, figure in _plots(results, judged, decided=_decided(answer.predictions, judged)).items()
                    if name in ANSWER_PLOTS
                }
            figures["jobs"] = data_plots(data.jobs)
            served = _of_test(answer.predictions if bundle else fit.predictions, judged)
            is_judged = np.isin(data.test, judged.test)
            against = {
                target: compare_predictions(
                    target,
                    data.jobs.iloc[judged.test],
                    served,
                    {name: column[is_judged] for name, column in champion_answers.items()},
                )
                for target, prediction in PREDICTED.items()
                if prediction in served and prediction in champion_answers and is_judged.any()
            }
            content = ReportContent(
                title=f"calmlflow {name}",
                run_id=run.info.run_id,
                created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                source=request.data,
                scores=scores,
                intervals=intervals,
                against=against,
                champion_name=f"version {found.version}" if found else "champion",
                figures=figures,
                jobs=shown,
                quarantine=Checked(data.jobs, data.quarantine).reasons(),
                sizes=sizes,
                split=(
                    f"split by {data.split}, seed {request.seed}: trained on {sizes['n_train']:,} jobs of "
                    f"{sizes['n_train_programmes']:,} programmes, tested on {sizes['n_test']:,} jobs of "
                    f"{sizes['n_test_programmes']:,}"
                ),
                seeds=over_seeds(others, "answer" if bundle else "test", own_scores),
            )
            (tree.partial / "report.html").write_text(report_html(content), encoding="utf-8", errors="replace")
            clock.lap("log")

        # Log.
        with noting(f"the training is kept in {tree.final}"):
            logged: dict[str, LoggedModel] = {}
            for network in networks:
                target, fit = TARGETS[network], fits[network]
                with tracked_run(target, nested=True) if bundle else nullcontext(run) as own:
                    runs[network] = own.info.run_id
                    if bundle:
                        of_parent = {name: getattr(request, name) for name in ("data", "split", "seed")}
                        log_new_params({**own_params[network], **of_parent, **sizes, **environment_params()})
                        MlflowClient().log_inputs(own.info.run_id, inputs)
                    log_history(fit.results.history or {})
                    mlflow.log_metrics({"fit_seconds": fit.fit_seconds, "best_epoch": fit.best_epoch})
                    own_kinds = {kind: of_kind for kind, of_kind in scores[target].items() if kind != "answer"}
                    log_scores({target: own_kinds}, own_intervals, f"{network} of {request.data}")
                    if not bundle:
                        log_pictures(target, fit.results, _decided(fit.predictions, data))
                    mlflow.log_artifacts(str(tree.final / "results" / target), f"results/{target}")
                    metadata = {"data": request.data, "seed": request.seed, f"run.{network}": own.info.run_id}
                    model = NETWORK_MODELS[network]
                    logged[model] = log_model(own_models, [network], model, metadata)
            mlflow.log_artifacts(str(tree.final))
            parts_from = dict.fromkeys(taken, found.version if found else "")
            newest = int(data.jobs["timestamp"].iloc[data.train].max())
            origin = Lineage(
                request.data, len(data.train), newest, request.seed, own_scores, runs, parts_from, alone, data.split
            )
            if bundle:
                for target, results in answer.results.items():
                    log_pictures(target, results, _decided(answer.predictions, judged))
                mlflow.set_tags(origin.origins(NETWORKS))
                log_scores(scores, intervals, f"Three networks of {request.data}")
                metadata = {"data": request.data, "seed": request.seed, **origin.origins(NETWORKS)}
                logged[BUNDLE_MODEL] = log_model(tree.final / "models", NETWORKS, BUNDLE_MODEL, metadata)
        clock.lap("log")

        written = sent = promoted = ""
        if request.writeback:
            with closing(open_store(request.data)) as store:
                found_records = write_back(store, table, int(tree.final.name.rpartition("-")[2]))
                written = f"{found_records} in {store.name}"
            clock.lap("writeback")
        if request.destination != "none":
            archives = Path(scratch) / "archives"
            archives.mkdir()
            files = send_training(tree.final, pack(tree.final, archives), request.destination)
            sent = f"{len(files)} files to {request.destination.rstrip('/')}/{tree.final.name}/"
            clock.lap("send")
        versions: dict[str, int] = {}
        if request.register:
            versions = register(logged, origin)
            clock.lap("register")
        if stage:
            # A gate that refuses ends the command, so what was made is said before.
            made = ", ".join(f"{model} version {number}" for model, number in versions.items())
            say(f"registered {made}; results: {tree.final}; asking the gate for {stage}")
            model = BUNDLE_MODEL if bundle else NETWORK_MODELS[networks[0]]
            promoted = promote_in_run(PromotionRequest(stage, versions[model], model), nested=True)
        mlflow.log_metrics({f"seconds_{part}": seconds for part, seconds in clock.seconds.items()})
    champion_version = found.version if found else ""
    return Outcome(
        run.info.run_id,
        tree.final,
        scores,
        intervals,
        clock.seconds,
        versions,
        champion_version,
        taken,
        written,
        sent,
        promoted,
    )


def _check(request: TrainingRequest) -> str | None:
    """Check the request before jobs are read; returns the stage to promote to, if any."""
    stage = None if request.stage == "None" else settings.parse_stage(request.stage)
    if stage and not request.register:
        raise InputError(f"stage is {stage} and register is false; expected register=true: only a version has a stage")
    if not 0 <= request.risk <= MAX_RISK:
        raise InputError(f"risk is {request.risk:g}; expected 0 to {MAX_RISK:g}")
    if request.writeback:
        check_writable(request.data)
    if request.destination != "none":
        parse_s3(request.destination)
    return stage


def searched_on_test_jobs(data: TrainingData, request: TrainingRequest) -> Iterator[str]:
    """Give a warning for each search for hyper-parameters that may have read test jobs of this training."""
    oldest = data.jobs["timestamp"].iloc[data.test].min()
    for searched in dict.fromkeys(read_found_on(request.config).values()):
        same = (searched.split, searched.seed) == (data.split, request.seed) and request.test_size <= searched.test_size
        if oldest <= searched.newest_job and (data.split == "time" or not same):
            yield (
                f"warning: config {request.config} was found on {searched.data} with split={searched.split}, seed "
                f"{searched.seed} and test_size {searched.test_size:g}; test jobs of this run may be among those, and "
                "its scores too good"
            )


def _new_to(data: TrainingData, runs: Iterable[str], taken: Sequence[str]) -> TrainingData:
    """Keep as test jobs those that no run trained on, if there are enough to score on, and say how many."""
    names = data.jobs["ipst"].iloc[data.test]
    new = data.test[~names.isin(trained_on(set(runs))).to_numpy()]
    mlflow.log_param("n_test_answer", len(new))
    if len(new) == len(data.test):
        return data
    is_enough = len(new) >= FEWEST_JUDGED
    found = f"{len(new):,} of {len(data.test):,} test jobs are new to the trainings of {', '.join(taken)}"
    say(f"{found}: {'the answer is scored on these' if is_enough else f'too few for scores, {FEWEST_JUDGED} at least'}")
    return replace(data, test=new if is_enough else new[:0])


def held_out_intervals(target: str, data: TrainingData, predictions: Predictions) -> dict[str, Interval]:
    """95 % intervals of the scores of predictions of all jobs, on the test jobs."""
    return score_intervals(target, data.jobs.iloc[data.test], _of_test(predictions, data))


def log_scores(scores: Scores, intervals: Intervals, title: str, next_steps: str = NEXT_STEPS) -> None:
    """Log every score into the active run, and the headline ones with their intervals as its description."""
    mlflow.log_metrics(
        {
            f"{kind}_{target}_{name}": value
            for target, kinds in scores.items()
            for kind, of_kind in kinds.items()
            for name, value in of_kind.items()
        }
    )
    mlflow.set_tag("mlflow.note.content", describe(scores, intervals, title, next_steps))


def _of_test(predictions: Predictions, data: TrainingData) -> Predictions:
    return {name: column[data.test] for name, column in predictions.items()}


def _network_plots(network: str, fit: Fit, data: TrainingData, models: Path) -> dict[str, go.Figure]:
    """Plots of one network's test split, with the importance of its features."""
    bundle = Bundle.load(models, [network])

    def predict(features: NDArray) -> NDArray:
        rows = distinct_rows(features)
        return bundle.predict(rows.features)[ANSWERS[network]][rows.row_of_job]

    return _plots(fit.results, data, predict, _decided(fit.predictions, data))


def _decided(predictions: Predictions, data: TrainingData) -> NDArray | None:
    """Bins decided on for the test jobs; None for the networks of memory and wallclock, which decide on none."""
    return predictions["bin_pred"][data.test] if "bin_pred" in predictions else None


def _plots(
    results: ClassificationResults | RegressionResults,
    data: TrainingData,
    predict: Predict | None = None,
    decided: NDArray | None = None,
) -> dict[str, go.Figure]:
    jobs = data.jobs.iloc[data.test]
    if isinstance(results, ClassificationResults):
        return classification_plots(results, jobs, predict, decided)
    return regression_plots(results, jobs, predict)


def log_pictures(
    target: str, results: ClassificationResults | RegressionResults, decided: NDArray | None = None
) -> None:
    """Log the headline plots of a target's answers into the active run; ``decided`` as for `headline_figures`."""
    for name, drawn in headline_figures(results, decided).items():
        mlflow.log_figure(drawn, f"plots/{target}/{name}.png")


def write_answers(data: TrainingData, predictions: Predictions, folder: Path) -> pd.DataFrame:
    """Write the answers with evidence to all jobs, each left out of its own, as ``answers.csv``; returns the table."""
    columns = {name: predictions[name] for name in (*PREDICTIONS, "kill_time")}
    columns |= dict(zip(PROBABILITIES, predictions["probabilities"].T, strict=True))
    columns |= dict(zip(COUNTS, predictions["evidence"].T, strict=True))
    table = pd.DataFrame({"ipst": data.jobs["ipst"], "split": data.part_of_job, **columns})
    table.to_csv(folder / "answers.csv", index=False, float_format="%.6g")
    return table


def write_tables(data: TrainingData, predictions: Predictions, folder: Path) -> pd.DataFrame:
    """Write the jobs with their predictions, and the records that were left out; returns the former."""
    folder.mkdir()
    predicted = {name: predictions[name] for name in PREDICTIONS if name in predictions}
    table = training_table(data.jobs, predicted, data.part_of_job)
    table.to_csv(folder / "latest.csv", index=False)
    if len(data.quarantine):
        data.quarantine.to_csv(folder / "quarantine.csv", index=False)
        total = len(data.jobs) + len(data.quarantine)
        say(f"quarantined {len(data.quarantine):,} of {total:,} records: see data/quarantine.csv of the run")
    return table
