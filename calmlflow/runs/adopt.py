"""Register networks that were trained elsewhere, scored on given jobs."""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
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
from calmlflow.runs.train import log_scores, write_tables
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS
from calmlflow.storage.archive import MAX_MEMBERS, extract
from calmlflow.storage.files import new_tree

OPERATIONAL_KILL_TIME = KillTime(edges_s=(), factors=(6.0,), coverage=COVERAGE, jobs=(0,))
"""Kill times as operation has them: six times the prediction. No job has calibrated them."""

SPACEKIT_ARCHIVE = "spacekit/builder/trained_networks/hst_cal.zip"
MAX_FILE_BYTES = 1 << 26

SCALING_FILES = ("tx_data.json", "pt_transform", "pt_transform.json")
_OLDER_KEYS = (("f_lambda", "s_lambda"), ("f_mean", "s_mean"), ("f_sigma", "s_sigma"))
_WANTED = {f"{network}.keras": network for network in NETWORKS} | dict.fromkeys(SCALING_FILES, "scaling")


@dataclass(frozen=True)
class AdoptionRequest:
    """The options of the entry point ``adopt``; see the table in the README."""

    source: str
    data: str = "sample"
    seed: int = 0
    output: str = "data"
    stage: str = "None"


class SourceFile(NamedTuple):
    """A file of a source: its name in errors, and its bytes."""

    shown: Path
    content: bytes


def adopt(request: AdoptionRequest) -> Outcome:
    """Register networks that were trained elsewhere, in one run; the first challenger then has a champion to beat.

    They are served as operation serves them: the most probable bin, and 6 x the predicted wallclock as kill time. Which
    jobs they were trained on is not known, so no job counts as unlike those, and every given job is scored.

    Parameters
    ----------
    request : AdoptionRequest
        ``source`` as for `read_source`, ``data`` as for `read_jobs`.

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
        features, everyone = jobs[list(FEATURES)].to_numpy(dtype=float), np.arange(len(jobs))
        data = TrainingData(
            jobs, checked.quarantine, features, everyone[:0], everyone, scaling, distinct_rows(features)
        )
        log_new_params({name: data.sizes()[name] for name in ("n_jobs", "n_quarantined")})
        for network in NETWORKS:
            content = files[network].content
            digest = hashlib.sha256(content).hexdigest()
            log_new_params({f"bytes_{network}": len(content), f"sha256_{network}": digest})
        mlflow.log_input(lineage(jobs, request.data, "testing"), context="testing")
        with new_tree(Path(request.output)) as tree:
            models = tree.partial / "models"
            predictions: Predictions = {}
            scores = {}
            for network in NETWORKS:
                fit = adopt_network(network, files[network], data, models)
                write_results(fit.results, tree.partial / "results" / TARGETS[network])
                scores[TARGETS[network]] = {"test": fit.scores, "floor": fit.floor}
                predictions |= fit.predictions
            write_tables(data, predictions, tree.partial / "data")
            log_scores(
                scores, f"Networks adopted from {request.source}", "Next: `calmlflow promote` to put them in a stage."
            )
            mlflow.log_artifacts(str(tree.partial))
            named = {NETWORK_MODELS[network]: (network,) for network in NETWORKS} | {BUNDLE_MODEL: NETWORKS}
            metadata = {"source": request.source, "data": request.data, "seed": request.seed}
            logged = {name: log_model(models, networks, name, metadata) for name, networks in named.items()}
        origin = Lineage(
            data=f"adopted from {request.source}",
            jobs=0,
            newest_job=0,
            seed=None,
            scores={target: kinds["test"] for target, kinds in scores.items()},
            runs=dict.fromkeys(NETWORKS, run.info.run_id),
        )
        versions = register(logged, origin)
        promoted = ""
        if stage:
            promoted = promote_in_run(PromotionRequest(stage, versions[BUNDLE_MODEL], BUNDLE_MODEL), nested=True)
    return Outcome(run.info.run_id, tree.final, scores, versions=versions, promoted=promoted)


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
    """Read the files of three networks and of their scaling.

    Parameters
    ----------
    source : str
        A folder or a ``.zip`` with ``mem_clf.keras``, ``mem_reg.keras``, ``wall_reg.keras`` and ``tx_data.json`` (or
        the older ``pt_transform``), side by side or each in its folder, as in ``models/mem_clf/mem_clf.keras``; or
        ``spacekit``, the archive in the installed package of this name.

    Returns
    -------
    dict of str to SourceFile
        ``mem_clf``, ``mem_reg``, ``wall_reg`` and ``scaling``; nothing has been looked into.

    Raises
    ------
    InputError
        There is no such source, the package is not installed, the archive is damaged, or a file is missing, too large,
        or there more than once; names it.
    """
    # As with the sample of jobs, a folder of this name is said as ./spacekit.
    place = _spacekit_archive() if source == "spacekit" else Path(source)
    shown = Path("spacekit") if source == "spacekit" else place
    if place.is_dir():
        return _read_folder(place, shown)
    if not place.is_file() or place.suffix.lower() != ".zip":
        what = "is no zip archive" if place.is_file() else "does not exist"
        raise InputError(f"source {source!r} {what}; expected a folder, a .zip archive, or spacekit")
    with tempfile.TemporaryDirectory() as folder:
        extract(place, Path(folder))
        return _read_folder(Path(folder), shown)


def _spacekit_archive() -> Path:
    try:
        # Not by importing it: spacekit changes how TensorFlow takes NumPy's types, for the whole process.
        place = Path(str(distribution("spacekit").locate_file(SPACEKIT_ARCHIVE)))
    except PackageNotFoundError as error:
        raise InputError(
            "source is spacekit, and the package spacekit is not installed; expected it (pip install spacekit), or a "
            "folder or a .zip"
        ) from error
    if not place.is_file():
        raise InputError(f"the installed package spacekit has no {SPACEKIT_ARCHIVE}; expected it as in spacekit 1.1")
    return place


def _read_folder(folder: Path, shown: Path) -> dict[str, SourceFile]:
    """The wanted files of a folder, each there once; ``shown`` names the folder in errors."""
    found: dict[str, SourceFile] = {}
    seen = 0
    for place, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > MAX_MEMBERS:
            raise InputError(f"{shown} holds more than {MAX_MEMBERS} files and folders; expected those of one training")
        folders.sort()
        for name in sorted(_WANTED.keys() & {*folders, *files}):
            path, part = Path(place, name), _WANTED[name]
            where = shown / path.relative_to(folder)
            if not path.is_file():
                raise InputError(f"{where} is no file; expected one, as Keras 3 writes it")
            if part in found:
                raise InputError(f"{shown} holds both {found[part].shown} and {where}; expected only one of them")
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise InputError(f"{where} has {size} bytes; expected at most {MAX_FILE_BYTES}")
            try:
                found[part] = SourceFile(where, path.read_bytes())
            except OSError as error:
                raise InputError(f"{where} cannot be read ({error.strerror}); expected a file") from error
    for name, part in _WANTED.items():
        if part not in found:
            raise InputError(f"{shown} holds no {name}; expected {', '.join(list(_WANTED)[:4])}")
    return found


def read_scaling(file: SourceFile) -> Scaling:
    """Read the scaling of networks from elsewhere; its keys show which of two formats it has.

    ``lambdas``, ``mu`` and ``sigma`` as in ``tx_data.json``, or the older ``f_lambda``, ``f_mean``, ``f_sigma`` (of
    n_files) and ``s_lambda``, ``s_mean``, ``s_sigma`` (of total_mb). What is written is always the former.

    Raises
    ------
    InputError
        It does not parse, or holds a number that cannot be; names the file.
    """
    try:
        data = json.loads(file.content)
        if data.keys() >= {key for pair in _OLDER_KEYS for key in pair}:
            columns = ([float(data[key]) for key in pair] for pair in _OLDER_KEYS)
            data = dict(zip(("lambdas", "mu", "sigma"), columns, strict=True))
        return Scaling.from_json(json.dumps(data))
    except InputError as error:
        raise InputError(f"{file.shown}: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{file.shown} does not parse; expected lambdas, mu and sigma, or f_lambda, s_lambda, f_mean, f_sigma, "
            "s_mean, s_sigma"
        ) from error
