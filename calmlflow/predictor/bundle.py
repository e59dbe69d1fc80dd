"""Read a bundle of up to three networks with their tables, and run it with onnxruntime."""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES, Features
from calmlflow.hst.ladder import LADDER, LADDER_FILE, Ladder
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.decision import Decision, SeenRows, widen
from calmlflow.predictor.evidence import Corrected, Evidence, Finished
from calmlflow.predictor.killtime import KillTime
from calmlflow.predictor.manifest import MANIFEST, OWN_TABLES, ladder_of, read_files, read_manifest, table_of
from calmlflow.settings import KILL_TIME_MAX_S, NETWORKS

# Set before the import: onnxruntime reports its use, and keeps a device id in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

T = TypeVar("T")

# The 45,000 jobs of the archive have 818 different rows.
MAX_KNOWN = 50_000

# Tables at the top that belong to one network, and the keys of the answer that each network gives.
TABLE_OF_NETWORK = {"mem_clf": "decision.json", "wall_reg": "killtime.json"}
ANSWER_KEYS = {
    "mem_clf": ("memBin", "probabilities", "unseen"),
    "mem_reg": ("memVal",),
    "wall_reg": ("clockTime", "killTime"),
}
COMMON_KEYS = ("evidence", "warnings")

# Larger numbers of a network are no answer: a petabyte, and thirty years.
MAX_GB, MAX_S = 1e6, 1e9
Predictions = dict[str, NDArray[Any]]
"""Predictions of n jobs, by the names of the job record's columns; a key is absent if the bundle lacks its network.

bin_pred (n,) 0, 1, ... (the rung decided on, or the most probable one without a decision.json), probabilities (n,
rungs), mem_pred (n,) GB, wall_pred (n,) seconds, kill_time (n,) seconds, evidence (n, 4): finished jobs behind the
levels row, programme, visit and run, and unseen (n,) bool: unlike any job that one of the networks was trained on. If
that is mem_clf, the probabilities are widened before the rung is decided on; if wall_reg, the kill time is the longest.
by_policy (n, 3) bool, there only if some are: the networks whose output cannot be true; `fallback` answers such a job.
"""

# Columns of the outputs of networks: a probability for each rung, GB, s, and the row of the training that is
# `SeenRows.nearest` to the job for each network, or -1; NaN where there is none. Nine on a ladder of four rungs.
BINS, _GB, _S, NEAREST = slice(None, -5), -5, -4, slice(-3, None)


def fallback(ladder: Ladder) -> dict[str, Any]:
    """The policy's answer where no bundle can be had, or where what its networks say cannot be true; `Predictions`."""
    return {
        "bin_pred": 1, "probabilities": tuple(float(rung == 1) for rung in range(len(ladder))),
        # Rounded up it would not fit in the rung.
        "mem_pred": math.floor(100 * ladder[1].limit_gb) / 100,
        "wall_pred": 1_200, "kill_time": 7_200, "evidence": 0,
    }  # fmt: skip


def in_logs(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outputs of networks in the columns of an answer, shape (n, 6): probabilities, ln GB and ln s."""
    # There is no logarithm of what a foreign network may say.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.hstack([outputs[:, BINS], np.log(outputs[:, _GB : _S + 1])])


def combine(
    outputs: NDArray[np.float64],
    decision: Decision | None = None,
    kill_time: KillTime | None = None,
    corrected: Corrected | None = None,
    networks: Collection[str] = NETWORKS,
    ladder: Ladder = LADDER,
) -> Predictions:
    """Make predictions of the outputs of networks, shape (n, 9), and of what evidence corrects them to."""
    found: Predictions = {}
    probabilities, values = outputs[:, BINS], outputs[:, _GB : _S + 1]
    known, in_programme = np.zeros(len(outputs), dtype=bool), None
    if corrected:
        probabilities, found["evidence"] = corrected.answers[:, :-2], corrected.jobs
        # Exactly 1 where nothing is corrected.
        with np.errstate(invalid="ignore", over="ignore"):
            factors = np.exp(corrected.answers[:, -2:] - corrected.steps[0][:, -2:])
            # What has no logarithm stays as it is.
            values = values * np.where(np.isfinite(factors), factors, 1.0)
        known, in_programme = corrected.jobs[:, 0] > 0, corrected.in_programme
    nearest = {name: rows for name in networks if (rows := nearest_rows(outputs, name)) is not None}
    # Evidence may be newer than the rows of the training.
    unseen = {network: (rows < 0) & ~known for network, rows in nearest.items()}
    if "mem_clf" in networks:
        if "mem_clf" in unseen and unseen["mem_clf"].any():
            probabilities = np.where(unseen["mem_clf"][:, None], widen(probabilities), probabilities)
        found["probabilities"] = probabilities
        found["bin_pred"] = probabilities.argmax(axis=1)
        if decision:
            found["bin_pred"] = decision.choose(probabilities, nearest.get("mem_clf", np.full(len(outputs), -1)))
    if "mem_reg" in networks:
        found["mem_pred"] = values[:, 0]
    if "wall_reg" in networks:
        found["wall_pred"] = values[:, 1]
        if kill_time:
            found["kill_time"] = kill_time.apply(found["wall_pred"], nearest.get("wall_reg"), in_programme)
            if "wall_reg" in unseen and unseen["wall_reg"].any():
                found["kill_time"] = np.where(unseen["wall_reg"], KILL_TIME_MAX_S, found["kill_time"])
    if unseen:
        found["unseen"] = reduce(np.logical_or, unseen.values())
    return _or_policy(found, len(outputs), ladder)


def nearest_rows(outputs: NDArray[np.float64], network: str) -> NDArray[np.int64] | None:
    """Row of its training that is nearest to each job, -1 for none; None where the network does not know its rows."""
    rows = outputs[:, NEAREST][:, NETWORKS.index(network)]
    return None if np.isnan(rows).any() else rows.astype(np.int64)


def _or_policy(found: Predictions, count: int, ladder: Ladder) -> Predictions:
    """Predictions of so many jobs, by policy for a job of which a network says what cannot be true."""
    # A comparison with NaN is false.
    wrong = np.zeros((count, len(NETWORKS)), dtype=bool)
    if "probabilities" in found:
        shares = found["probabilities"]
        wrong[:, 0] = ~((shares >= 0).all(axis=1) & (np.abs(shares.sum(axis=1) - 1) <= 1e-3))
    for place, (name, most) in enumerate((("mem_pred", MAX_GB), ("wall_pred", MAX_S)), start=1):
        if name in found:
            wrong[:, place] = ~((found[name] > 0) & (found[name] <= most))
    if not wrong.any():
        return found
    jobs, fixed = wrong.any(axis=1), fallback(ladder)
    replaced = {
        name: np.where(jobs.reshape(-1, *[1] * (column.ndim - 1)), fixed.get(name, column), column)
        for name, column in found.items()
    }
    return {**replaced, "by_policy": wrong}


@dataclass(frozen=True)
class _Group:
    """Networks with the same tables: a job is scaled and looked up once for all of them."""

    scaling: Scaling
    seen: SeenRows | None
    sessions: dict[str, onnxruntime.InferenceSession] = field(default_factory=dict)


class Bundle:
    """Networks ready to run, with the evidence that corrects them. Safe to share between threads.

    Files: ``{network}/{network}.onnx``, ``ladder.json`` (what the networks were trained for), ``tx_data.json``,
    ``killtime.json`` (with wall_reg), ``decision.json`` (with mem_clf, optional), ``seen_rows.json`` (optional), the
    folder ``evidence`` (optional) and ``bundle.json``, which lists the networks and the SHA-256 of every file. A
    network of another training has its own ``{network}/tx_data.json`` and ``{network}/seen_rows.json``, which replace
    those at the top.
    """

    def __init__(
        self,
        groups: Sequence[_Group],
        kill_time: KillTime | None,
        decision: Decision | None,
        evidence: Evidence | None = None,
        ladder: Ladder = LADDER,
    ):
        self._groups = tuple(groups)
        self.kill_time = kill_time
        self.decision = decision
        self.evidence = evidence
        self.ladder = ladder
        held = {network for group in groups for network in group.sessions}
        self.networks = tuple(network for network in NETWORKS if network in held)
        self._known: dict[Features, NDArray[np.float64]] = {}

    @classmethod
    def load(cls, folder: Path, networks: Sequence[str] | None = None) -> "Bundle":
        """Read a bundle with some, by default all, of its networks; an InputError names a file that is not right."""
        manifest = read_manifest(folder)
        return cls.read(manifest, read_files(folder, manifest), str(folder), networks)

    @classmethod
    def read(
        cls,
        manifest: Mapping[str, Any],
        files: Mapping[str, Any],
        bundle: str,
        networks: Sequence[str] | None = None,
    ) -> "Bundle":
        """Read a bundle from memory, named ``bundle`` in errors; the files were checked against the manifest."""

        def parsed(name: str, parse: Callable[[Any], T]) -> T:
            if name not in files:
                raise InputError(f"bundle {bundle}: {name} is not listed in {MANIFEST}; expected it for its networks")
            try:
                return parse(files[name])
            except InputError as error:
                raise InputError(f"bundle {bundle}: {name} cannot be used ({error})") from error

        try:
            ladder = ladder_of(files)
        except InputError as error:
            raise InputError(f"bundle {bundle}: {LADDER_FILE} cannot be used ({error})") from error
        groups: dict[tuple[str, ...], _Group] = {}
        group_of: dict[str, _Group] = {}
        for network in manifest["networks"] if networks is None else networks:
            tables, rows = (table_of(network, table, files) for table in OWN_TABLES)
            same = tuple(manifest["sha256"].get(name, "") for name in (tables, rows))
            if same not in groups:
                scaling = parsed(tables, Scaling.from_json)
                seen = parsed(rows, partial(SeenRows.read, scaling=scaling)) if rows in files else None
                groups[same] = _Group(scaling, seen)
            group_of[network] = groups[same]
            groups[same].sessions[network] = parsed(
                f"{network}/{network}.onnx",
                partial(_session, network=network, outputs=len(ladder) if network == "mem_clf" else 1),
            )
        kill_time = parsed("killtime.json", KillTime.from_json) if "wall_reg" in group_of else None
        decision = None
        if "mem_clf" in group_of and "decision.json" in files:
            decision = parsed("decision.json", partial(Decision.from_json, ladder=ladder))
        for name, network, lines in (
            ("decision.json", "mem_clf", len(decision.wallclock_ratio) if decision else 0),
            ("killtime.json", "wall_reg", len(kill_time.spread) if kill_time else 0),
        ):
            seen = group_of[network].seen if lines else None
            if lines and lines != (seen.count if seen else 0) + 1:
                raise InputError(
                    f"bundle {bundle}: {name} and {table_of(network, 'seen_rows.json', files)} do not belong together; "
                    "expected one line more in the first"
                )
        try:
            evidence = Evidence.read(files, ladder)
        except InputError as error:
            raise InputError(f"bundle {bundle}: {error}") from error
        return cls(list(groups.values()), kill_time, decision, evidence, ladder)

    @property
    def answer_keys(self) -> tuple[str, ...]:
        return tuple(key for network in self.networks for key in ANSWER_KEYS[network]) + COMMON_KEYS

    def run(self, features: ArrayLike) -> NDArray[np.float64]:
        """Run every network on raw features of shape (n, 9), in the order of `calmlflow.hst.features.FEATURES`.

        Gives the outputs that `answer` takes, shape (n, 9). They depend on the features alone, so they may be kept.
        """
        features = np.asarray(features, dtype=float)
        outputs = np.full((len(features), len(self.ladder) + 5), np.nan)
        for group in self._groups:
            scaled = group.scaling.apply(features)
            rows = group.seen.nearest(features, scaled) if group.seen else None
            for network, session in group.sessions.items():
                place = NETWORKS.index(network)
                columns = BINS if place == 0 else slice(place - 6, place - 5)
                outputs[:, columns] = session.run(None, {"features": scaled})[0]
                if rows is not None:
                    outputs[:, place - 3] = rows
        # No network has learned from jobs whose input alone fills the largest rung.
        input_gb = features[:, FEATURES.index("total_mb")] / 1000
        beyond = input_gb >= self.ladder[-1].limit_gb
        if beyond.any():
            outputs[beyond, _GB] = np.maximum(outputs[beyond, _GB], input_gb[beyond])
            outputs[beyond, BINS] = np.where(np.isnan(outputs[beyond, BINS]), np.nan, np.eye(len(self.ladder))[-1])
        return outputs

    def run_known(self, rows: Sequence[Features]) -> NDArray[np.float64]:
        """The outputs of `run` for n rows, of which each of the first `MAX_KNOWN` different ones runs once."""
        known = self._known
        if new := [row for row in dict.fromkeys(rows) if row not in known]:
            found = dict(zip(new, self.run(new), strict=True))
            if len(known) + len(found) <= MAX_KNOWN:
                known.update(found)
            else:
                known = {**{row: known[row] for row in rows if row in known}, **found}
        return np.array([known[row] for row in rows])

    def correct(
        self,
        outputs: NDArray[np.float64],
        features: ArrayLike,
        names: Sequence[str] | NDArray[Any] | None = None,
        finished: Finished | None = None,
        whole_programme: bool = False,
    ) -> Corrected | None:
        """Correct the outputs of `run` by the evidence, if there is any; see `predict` and `Evidence.correct`."""
        if self.evidence is None:
            return None
        answers = in_logs(outputs)
        # What cannot be true may be infinite.
        with np.errstate(invalid="ignore"):
            if finished is None:
                return self.evidence.correct(answers, features, names)
            took = finished.observed(self.ladder)
            return self.evidence.correct(answers, features, names, took, whole_programme, finished.timestamp)

    def answer(self, outputs: NDArray[np.float64], corrected: Corrected | None) -> Predictions:
        """Answer n jobs by the outputs of `run` and by what `correct` makes of them; None: as the networks alone."""
        return combine(outputs, self.decision, self.kill_time, corrected, self.networks, self.ladder)

    def predict(
        self,
        features: ArrayLike,
        names: Sequence[str] | NDArray[Any] | None = None,
        finished: Finished | None = None,
        whole_programme: bool = False,
    ) -> Predictions:
        """Answer n jobs.

        Parameters
        ----------
        features : array_like, shape (n, 9)
            Raw, in the order of `calmlflow.hst.features.FEATURES`.
        names : sequence of n str, optional
            Ipppssoots in lower case. Without them evidence of programme, visit and dataset does not count.
        finished : Finished, optional
            The jobs, where they are finished: each is answered as of its own time, and left out of its own answer if
            the evidence holds it. Default: the jobs are still to run.
        whole_programme : bool
            Leave out all jobs of its programme and row, too.
        """
        outputs = self.run(features)
        return self.answer(outputs, self.correct(outputs, features, names, finished, whole_programme))


def _session(model: bytes, network: str, outputs: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # The networks are so small that a second thread costs time.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The exceptions of onnxruntime have no common public base.
        raise InputError(f"{network}.onnx is no ONNX network ({type(error).__name__})") from error
    shapes = tuple([each.shape[1:] for each in some] for some in (session.get_inputs(), session.get_outputs()))
    expected = [[len(FEATURES)]], [[outputs]]
    if shapes != expected or session.get_inputs()[0].name != "features":
        raise InputError(f"{network}.onnx takes and gives {shapes}; expected {expected}")
    return session
