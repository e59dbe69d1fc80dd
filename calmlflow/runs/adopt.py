"""Register networks that were trained elsewhere, scored on given jobs."""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np

from calmlflow import settings
from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.keras_file import parse_network
from calmlflow.networks.rows import distinct_rows
from calmlflow.predictor.bundle import Predictions
from calmlflow.predictor.killtime import COVERAGE, KillTime
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import log_model, register
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.results.files import write_results
from calmlflow.runs.data import TrainingData
from calmlflow.runs.fit import Fit, export_and_score
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.summary import Outcome
from calmlflow.runs.train import held_out_intervals, log_scores, write_tables
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS
from calmlflow.storage.archive import MAX_MEMBERS, extract
from calmlflow.storage.files import new_tree

# Kill times as operation has them: six times the prediction. No job has calibrated them.
OPERATIONAL_KILL_TIME = KillTime(edges_s=(), factors=(6.0,), coverage=COVERAGE, jobs=(0,))

SPACEKIT_ARCHIVE = "spacekit/builder/trained_networks/hst_cal.zip"
MAX_FILE_BYTES = 1 << 26

_OLDER_KEYS = (("f_lambda", "s_lambda"), ("f_mean", "s_mean"), ("f_sigma", "s_sigma"))
_WANTED = {f"{network}.keras": network for network in NETWORKS} | dict.fromkeys(
    ("tx_data.json", "pt_transform", "pt_transform.json"), "scaling"
)


@dataclass(frozen=True)
class AdoptionRequest:
    """Options of the entry point; see docs/reference.md."""

    source: str
    data: str = "sample"
    seed: int = 0
    output: str = "data"
    stage: str = "None"


class SourceFile(NamedTuple):
    shown: Path  # its name in errors
    content: bytes


def adopt(request: AdoptionRequest) -> Outcome:
    """Register networks that were trained elsewhere, in one run.

    They are served as operation serves them: the most probable bin, and 6 x the predicted wallclock as kill time. Their
    training jobs are unknown, so every given job is scored. After a CalmlflowError no tree is left and nothing is
    registered; only a promotion that fails leaves both.
    """
    with tracked_run("adopt") as run:
        stage = None if request.stage == "None" else settings.parse_stage(request.stage)
        log_new_params({**asdict(request), **environment_params()})
        files = read_source(request.source)
        scaling = read_scaling(files["scaling"])
        checked = read_jobs(request.data, request.seed)
        jobs = checked.valid
        everyone = np.arange(len(jobs))
        rows = distinct_rows(jobs[list(FEATURES)])
        data = TrainingData(jobs, checked.quarantine, everyone[:0], everyone, scaling, rows, "job")
        log_new_params({name: data.sizes()[name] for name in ("n_jobs", "n_quarantined")})
        digests = {f"sha256_{network}": hashlib.sha256(files[network].content).hexdigest() for network in NETWORKS}
        log_new_params(digests)
        mlflow.log_input(lineage(jobs, request.data, "testing"), context="testing")
        with new_tree(Path(request.output)) as tree:
            models = tree.partial / "models"
            predictions: Predictions = {}
            scores, intervals = {}, {}
            for network in NETWORKS:
                fit = adopt_network(network, files[network], data, models)
                write_results(fit.results, tree.partial / "results" / TARGETS[network])
                scores[TARGETS[network]] = {"test": fit.scores, "floor": fit.floor}
                intervals[TARGETS[network]] = held_out_intervals(TARGETS[network], data, fit.predictions)
                predictions |= fit.predictions
            write_tables(data, predictions, tree.partial / "data")
            title = f"Networks adopted from {request.source}"
            log_scores(scores, intervals, title, "Next: `calmlflow promote` to put them in a stage.")
            mlflow.log_artifacts(str(tree.partial))
            named = {NETWORK_MODELS[network]: (network,) for network in NETWORKS} | {BUNDLE_MODEL: NETWORKS}
            metadata = {"source": request.source, "data": request.data, "seed": request.seed}
            logged = {name: log_model(models, networks, name, metadata) for name, networks in named.items()}
        own_scores = {target: kinds["test"] for target, kinds in scores.items()}
        runs = dict.fromkeys(NETWORKS, run.info.run_id)
        # Jobs, newest job and seed of the training are unknown.
        origin = Lineage(f"adopted from {request.source}", 0, 0, None, own_scores, runs)
        versions = register(logged, origin)
        promoted = ""
        if stage:
            promoted = promote_in_run(PromotionRequest(stage, versions[BUNDLE_MODEL], BUNDLE_MODEL), nested=True)
    return Outcome(run.info.run_id, tree.final, scores, intervals, versions=versions, promoted=promoted)


def adopt_network(network: str, file: SourceFile, data: TrainingData, models: Path) -> Fit:
    """Write one network into a folder ``models`` as a training leaves it, and score it."""
    model = parse_network(file.content, file.shown, network)
    (models / network).mkdir(parents=True)
    (models / network / f"{network}.keras").write_bytes(file.content)
    tables = {"killtime.json": OPERATIONAL_KILL_TIME.to_json()} if network == "wall_reg" else {}
    try:
        return export_and_score(network, model, data, tables, models)
    except InputError as error:
        raise InputError(f"{file.shown}: {error}") from error


def read_source(source: str) -> dict[str, SourceFile]:
    """Read the files ``mem_clf``, ``mem_reg``, ``wall_reg`` and ``scaling``, without parsing them.

    ``source`` is a folder or a ``.zip`` with ``mem_clf.keras``, ``mem_reg.keras``, ``wall_reg.keras`` and
    ``tx_data.json`` (or the older ``pt_transform``), in whatever folders; or ``spacekit``, the archive in the installed
    package of this name. An InputError names what is missing, too large, or there more than once.
    """
    place = Path(source)
    if source == "spacekit":
        try:
            # Not imported: spacekit changes how TensorFlow takes NumPy's types, for the whole process.
            place = Path(str(distribution("spacekit").locate_file(SPACEKIT_ARCHIVE)))
        except PackageNotFoundError as error:
            raise InputError("the package spacekit is not installed; expected it, or a folder or a .zip") from error
    if place.is_dir():
        return _read_folder(place, place)
    if not place.is_file() or place.suffix.lower() != ".zip":
        what = "is no zip archive" if place.is_file() else "does not exist"
        raise InputError(f"source {str(place)!r} {what}; expected a folder, a .zip archive, or spacekit")
    with tempfile.TemporaryDirectory() as folder:
        extract(place, Path(folder))
        return _read_folder(Path(folder), Path(source))


def _read_folder(folder: Path, shown: Path) -> dict[str, SourceFile]:
    """Read the wanted files of a folder, each there once; ``shown`` names the folder in errors."""
    found: dict[str, SourceFile] = {}
    paths = sorted(islice(folder.rglob("*"), MAX_MEMBERS + 1))
    if len(paths) > MAX_MEMBERS:
        raise InputError(f"{shown} holds more than {MAX_MEMBERS} files and folders; expected those of one training")
    for path in paths:
        if path.name not in _WANTED or path.is_dir():
            continue
        where, part = shown / path.relative_to(folder), _WANTED[path.name]
        if part in found:
            raise InputError(f"{shown} holds both {found[part].shown} and {where}; expected only one of them")
        try:
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise InputError(f"{where} has {size} bytes; expected at most {MAX_FILE_BYTES}")
            found[part] = SourceFile(where, path.read_bytes())
        except OSError as error:
            raise InputError(f"{where} cannot be read ({error.strerror}); expected a file") from error
    saved = next((shown / path.relative_to(folder).parent for path in paths if path.name == "saved_model.pb"), None)
    for name, part in _WANTED.items():
        if part not in found and part != "scaling" and saved:
            # Its graph may hold any operation of TensorFlow, also those that read and write files.
            raise InputError(
                f"{saved} is a SavedModel of an earlier Keras, a program that is not run here; expected {name}: read "
                "its weights where it was trained (get_weights), set them in the same layers of Keras 3 (set_weights), "
                f"and save {name}"
            )
        if part not in found:
            raise InputError(f"{shown} holds no {name}; expected {', '.join(list(_WANTED)[:4])}")
    return found


def read_scaling(file: SourceFile) -> Scaling:
    """Read ``lambdas``, ``mu`` and ``sigma``, or the older keys: ``f_`` of n_files and ``s_`` of total_mb."""
    try:
        data = json.loads(file.content)
        if data.keys() >= {key for pair in _OLDER_KEYS for key in pair}:
            columns = ([float(data[key]) for key in pair] for pair in _OLDER_KEYS)
            data = dict(zip(("lambdas", "mu", "sigma"), columns, strict=True))
        return Scaling.from_json(json.dumps(data))
    except InputError as error:
        raise InputError(f"{file.shown}: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file.shown} does not parse; expected lambdas, mu and sigma") from error
