"""What one MLflow run does: read -> train -> evaluate -> log -> register."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pandas as pd
import plotly.graph_objects as go
from mlflow.data.pandas_dataset import PandasDataset

from calmlflow import settings
from calmlflow.console import progress, say
from calmlflow.errors import InputError
from calmlflow.jobs.records import Checked
from calmlflow.jobs.stores.open import open_store
from calmlflow.jobs.upsert import check_writable, write_back
from calmlflow.networks.architectures import HIDDEN
from calmlflow.networks.config import read_config
from calmlflow.networks.training import TrainingConfig
from calmlflow.predictor.bundle import Predictions
from calmlflow.predictor.decision import MAX_RISK
from calmlflow.registry.assemble import assemble, runs_of_version
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import LoggedModel, log_model, register
from calmlflow.registry.tracking import environment_params, lineage, log_history, log_new_params, tracked_run
from calmlflow.results.plots.common import headline_figures
from calmlflow.results.plots.data import data_plots
from calmlflow.results.report.training import ReportContent, report_html
from calmlflow.results.table import PREDICTIONS, training_table
from calmlflow.runs.baselines import champion, random_forest
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.fit import FittedNetwork, fit_network
from calmlflow.runs.presentation import network_plots
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.ship import send_training
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS
from calmlflow.storage.archive import pack
from calmlflow.storage.files import new_tree
from calmlflow.storage.s3 import parse_s3


@dataclass(frozen=True)
class TrainingRequest:
    """What the user of a training entry point says; see the table in the README."""

    data: str = "sample"
    output: str = "data"
    seed: int = 0
    test_size: float = 0.2
    register: bool = True
    stage: str = "None"
    config: str = "default"
    risk: float = 0.0
    writeback: bool = False
    destination: str = "none"


@dataclass
class Outcome:
    """What a training left behind; printed as its summary.

    ``scores`` holds, by target, those of the network (``test``) and what they are held against on the same jobs:
    ``floor``, ``forest`` and, where there is one, ``champion``. A target whose network was taken over has only the
    champion's, as they are one and the same. ``runs`` names, by network, the run that trained it.
    """

    run_id: str
    tree: Path = Path()
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    champion: str = ""
    taken_over: tuple[str, ...] = ()
    runs: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, go.Figure]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    written: str = ""
    sent: str = ""
    promoted: str = ""

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def train(
    request: TrainingRequest, networks: Sequence[str] = NETWORKS, bundle: bool = True, nested: bool = False
) -> Outcome:
    """Train networks in one run.

    The run's artifacts are the output tree, the logged models, and the quarantined records where there are any. With
    ``register``, each network that was trained, and the bundle, becomes a registered version; with a ``stage``, the
    bundle (or else the one network) is promoted.

    Parameters
    ----------
    request : TrainingRequest
    networks : sequence of str
        Those to train.
    bundle : bool
        Make a bundle, with the networks that are not trained as the version in Production has them; each training is a
        child run then. Otherwise ``networks`` is one, and stays alone.
    nested : bool
        Train in a child of the active run.

    Raises
    ------
    CalmlflowError
        The run is marked FAILED. Whatever fails before the tree is complete leaves no tree and registers nothing; a
        promotion that fails, or that the gate refuses, leaves tree and versions, which can be promoted later.
    """
    taken = tuple(network for network in NETWORKS if bundle and network not in networks)
    name = "main" if bundle else TARGETS[networks[0]]
    with tracked_run(name, nested) as run:
        stage = None if request.stage == "None" else settings.parse_stage(request.stage)
        if stage and not request.register:
            raise InputError(
                f"stage is {stage} and register is false; expected register=true: only a version has a stage"
            )
        if not 0 <= request.risk <= MAX_RISK:
            raise InputError(f"risk is {request.risk:g}; expected 0 to {MAX_RISK:g}")
        configs = read_config(request.config)
        if request.writeback:
            check_writable(request.data)
        if request.destination != "none":
            parse_s3(request.destination)
        outcome = Outcome(run.info.run_id, taken_over=taken)
        with outcome.timed("references"):
            # Before a promotion of this very run could make it its own champion.
            found = champion(needed_for=taken)
        if found:
            outcome.champion = found.version
            mlflow.set_tag("champion_version", found.version)
            outcome.runs = runs_of_version(found.version, taken)
        with outcome.timed("read"):
            data = load_training_data(request.data, request.seed, request.test_size)
        only = {"only": ",".join(networks) if taken else "all"} if bundle else {}
        log_new_params({**asdict(request), **only, **data.sizes(), **environment_params()})
        inputs = {
            context: lineage(data.jobs.iloc[part], request.data, context)
            for context, part in (("training", data.train), ("testing", data.test))
        }
        _log_inputs(inputs)
        if found:
            with outcome.timed("references"):
                outcome.scores = {target: {"champion": scores} for target, scores in found.scores(data).items()}
        with new_tree(Path(request.output)) as tree:
            fitted: dict[str, FittedNetwork] = {}
            models: dict[str, LoggedModel] = {}
            for network in networks:
                with tracked_run(TARGETS[network], nested=True) if bundle else nullcontext(run) as own:
                    outcome.runs[network] = own.info.run_id
                    if bundle:
                        _log_inputs(inputs)
                    models |= _train_one(network, request, configs[network], data, tree.partial, fitted, outcome)
            predictions = {name: column for one in fitted.values() for name, column in one.predictions.items()}
            if found and taken:
                by_row = assemble(tree.partial / "models", found.folder).predict(data.rows.features)
                predictions = {name: column[data.rows.row_of_job] for name, column in by_row.items()}
            # A network that was taken over is the champion's, which was scored on these very jobs.
            scores = {target: kinds.get("test") or kinds["champion"] for target, kinds in outcome.scores.items()}
            origin = Lineage.of_training(
                request.data,
                data.jobs.iloc[data.train],
                request.seed,
                scores,
                outcome.runs,
                dict.fromkeys(taken, outcome.champion),
            )
            with outcome.timed("log"):
                table = _write_tables(data, predictions, tree.partial)
                outcome.figures["jobs"] = data_plots(data.jobs)
                page = report_html(_report(name, request, outcome, data, table))
                (tree.partial / "report.html").write_text(page, encoding="utf-8", errors="replace")
                mlflow.log_artifacts(str(tree.partial))
                if bundle:
                    mlflow.set_tags(origin.origins(NETWORKS))
                    metadata = _metadata(request, origin.origins(NETWORKS))
                    models[BUNDLE_MODEL] = log_model(tree.partial / "models", NETWORKS, BUNDLE_MODEL, metadata)
                    for target in TARGETS.values():
                        _log_scores(target, outcome)
        outcome.tree = tree.final
        if request.writeback:
            with outcome.timed("writeback"), closing(open_store(request.data)) as store:
                written = write_back(store, table, int(outcome.tree.name.rpartition("-")[2]))
                outcome.written = f"{written} in {store.name}"
        if request.destination != "none":
            with outcome.timed("send"), tempfile.TemporaryDirectory() as folder:
                archives = pack(outcome.tree, Path(folder))
                sent = send_training(outcome.tree, archives, request.destination)
            outcome.sent = f"{len(sent)} files to {request.destination.rstrip('/')}/{outcome.tree.name}/"
        if request.register:
            with outcome.timed("register"):
                outcome.versions = register(models, origin)
        if stage:
            # A gate that refuses ends the command: what is there all the same is told before.
            made = ", ".join(f"{name} version {number}" for name, number in outcome.versions.items())
            say(f"registered {made}; results: {outcome.tree}; asking the gate for {stage}")
            model = BUNDLE_MODEL if bundle else NETWORK_MODELS[networks[0]]
            outcome.promoted = promote_in_run(PromotionRequest(stage, outcome.versions[model], model), nested=True)
        mlflow.log_metrics({f"seconds_{part}": seconds for part, seconds in outcome.seconds.items()})
    return outcome


def _train_one(
    network: str,
    request: TrainingRequest,
    config: TrainingConfig,
    data: TrainingData,
    tree: Path,
    fitted: dict[str, FittedNetwork],
    outcome: Outcome,
) -> dict[str, LoggedModel]:
    """Train and log one network in the active run; returns its registered model's name and logged model."""
    target = TARGETS[network]
    log_new_params({"data": request.data, "seed": request.seed, **data.sizes(), **environment_params()})
    log_new_params({"network": network, "hidden_layers": "-".join(map(str, HIDDEN[network])), **asdict(config)})
    with progress(f"training {network}", "epochs") as update, outcome.timed(f"train_{network}"):
        found = fitted[network] = fit_network(
            network,
            data,
            config,
            request.seed,
            request.risk,
            tree,
            lambda done, total, loss: update(done, total, f"validation loss {loss:.4g}"),
        )
    with outcome.timed("references"):
        forest = random_forest(data, target, request.seed)
    outcome.scores[target] = {
        "test": found.scores,
        "floor": found.floor,
        "forest": forest,
        **outcome.scores.get(target, {}),
    }
    with outcome.timed("log"):
        log_history(found.trained.history)
        mlflow.log_metrics({"fit_seconds": found.trained.fit_seconds, "best_epoch": found.trained.best_epoch})
        _log_scores(target, outcome)
        outcome.figures[target] = network_plots(network, found, data)
        for name, picture in headline_figures(found.results).items():
            mlflow.log_figure(picture, f"plots/{target}/{name}.png")
        mlflow.log_artifacts(str(tree / "results" / target), f"results/{target}")
        logged = log_model(
            tree / "models",
            [network],
            NETWORK_MODELS[network],
            _metadata(request, {f"run.{network}": outcome.runs[network]}),
        )
    return {NETWORK_MODELS[network]: logged}


def _log_inputs(inputs: Mapping[str, PandasDataset]) -> None:
    for context, dataset in inputs.items():
        mlflow.log_input(dataset, context=context)


def _log_scores(target: str, outcome: Outcome) -> None:
    for kind, scores in outcome.scores[target].items():
        mlflow.log_metrics({f"{kind}_{target}_{name}": value for name, value in scores.items()})


def _metadata(request: TrainingRequest, origins: Mapping[str, str]) -> dict[str, str | int]:
    return {"data": request.data, "seed": request.seed, **origins}


def _report(
    name: str, request: TrainingRequest, outcome: Outcome, data: TrainingData, table: pd.DataFrame
) -> ReportContent:
    return ReportContent(
        title=f"calmlflow {name}",
        run_id=outcome.run_id,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        source=request.data,
        scores={target: scores for target, scores in outcome.scores.items() if "test" in scores},
        champion_name=f"version {outcome.champion}" if outcome.champion else "champion",
        figures=outcome.figures,
        jobs=table,
        quarantine=Checked(data.jobs, data.quarantine).reasons(),
        sizes=data.sizes(),
    )


def _write_tables(data: TrainingData, predictions: Predictions, tree: Path) -> pd.DataFrame:
    """Write the training set with its predictions, which is given back, and the records that were left out."""
    folder = tree / "data"
    folder.mkdir()
    predicted = {name: predictions[name] for name in PREDICTIONS if name in predictions}
    table = training_table(data.jobs, predicted, data.split)
    table.to_csv(folder / "latest.csv", index=False)
    if len(data.quarantine):
        data.quarantine.to_csv(folder / "quarantine.csv", index=False)
        total = len(data.jobs) + len(data.quarantine)
        say(f"quarantined {len(data.quarantine):,} of {total:,} records: see data/quarantine.csv of the run")
    return table
