"""Read a bundle of up to three networks with their tables, and run it with onnxruntime."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.decision import Decision, SeenRows
from calmlflow.predictor.killtime import KillTime
from calmlflow.predictor.manifest import MANIFEST, OWN_TABLES, read_files, read_manifest, table_of
from calmlflow.settings import KILL_TIME_MAX_S, NETWORKS

# Set before the import: onnxruntime reports its use, and keeps a device id in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

T = TypeVar("T")

# Tables at the top that belong to one network, and the keys of the answer that each network gives.
TABLE_OF_NETWORK = {"mem_clf": "decision.json", "wall_reg": "killtime.json"}
ANSWER_KEYS = {
    "mem_clf": ("memBin", "probabilities", "unseen"),
    "mem_reg": ("memVal",),
    "wall_reg": ("clockTime", "killTime"),
}

Predictions = dict[str, NDArray[Any]]
"""Predictions of n jobs, by the names of the job record's columns; a key is absent if the bundle lacks its network.

bin_pred (n,) 0..3 (the rung decided on, or the most probable one without a decision.json), probabilities (n, 4),
mem_pred (n,) GB, wall_pred (n,) seconds, kill_time (n,) seconds, and unseen (n,) bool: unlike any job that one of the
networks was trained on. If that network is mem_clf, the job gets a rung more; if wall_reg, the longest kill time.
"""


def combine(
    outputs: Mapping[str, NDArray],
    nearest: Mapping[str, NDArray[np.int64]],
    decision: Decision | None,
    kill_time: KillTime | None,
) -> Predictions:
    """Make predictions of the outputs of networks, (n, 4) or (n, 1), and of the rows `SeenRows.nearest` to the jobs.

    No job is unseen to a network that is absent from ``nearest``.
    """
    found: Predictions = {}
    # For a job unlike any in training the network guesses: a rung more, and the longest kill time.
    unseen = {network: rows < 0 for network, rows in nearest.items()}
    if "mem_clf" in outputs:
        probabilities = outputs["mem_clf"]
        found["probabilities"] = probabilities
        found["bin_pred"] = probabilities.argmax(axis=1)
        if decision:
            of_row = nearest["mem_clf"] if "mem_clf" in nearest else np.full(len(probabilities), -1)
            found["bin_pred"] = decision.choose(probabilities, of_row)
        if "mem_clf" in unseen:
            found["bin_pred"] = np.minimum(found["bin_pred"] + unseen["mem_clf"], len(LADDER) - 1)
    if "mem_reg" in outputs:
        found["mem_pred"] = outputs["mem_reg"][:, 0].astype(float)
    if "wall_reg" in outputs:
        found["wall_pred"] = outputs["wall_reg"][:, 0].astype(float)
        if kill_time:
            found["kill_time"] = kill_time.apply(found["wall_pred"], nearest.get("wall_reg"))
            if "wall_reg" in unseen:
                found["kill_time"] = np.where(unseen["wall_reg"], KILL_TIME_MAX_S, found["kill_time"])
    if unseen:
        found["unseen"] = reduce(np.logical_or, unseen.values())
    return found


@dataclass(frozen=True)
class _Group:
    """Networks with the same tables: a job is scaled and looked up once for all of them."""

    scaling: Scaling
    seen: SeenRows | None
    sessions: dict[str, onnxruntime.InferenceSession] = field(default_factory=dict)


class Bundle:
    """Networks ready to run. Safe to share between threads.

    Files: ``{network}/{network}.onnx``, ``tx_data.json``, ``killtime.json`` (with wall_reg), ``decision.json`` (with
    mem_clf, optional), ``seen_rows.json`` (optional) and ``bundle.json``, which lists the networks and the SHA-256 of
    every file. A network of another training has its own ``{network}/tx_data.json`` and ``{network}/seen_rows.json``,
    which replace those at the top.
    """

    def __init__(self, groups: Sequence[_Group], kill_time: KillTime | None, decision: Decision | None):
        self._groups = tuple(groups)
        self._kill_time = kill_time
        self._decision = decision

    @classmethod
    def load(cls, folder: Path, networks: Sequence[str] | None = None) -> "Bundle":
        """Read a bundle with some, by default all, of its networks; an InputError names a file that is not right."""
        manifest = read_manifest(folder)
        return cls.read(manifest, read_files(folder, manifest), str(folder), networks)

    @classmethod
    def read(
        cls,
        manifest: Mapping[str, Any],
        files: Mapping[str, bytes],
        bundle: str,
        networks: Sequence[str] | None = None,
    ) -> "Bundle":
        """Read a bundle from memory, named ``bundle`` in errors; the files were checked against the manifest."""

        def parsed(name: str, parse: Callable[[bytes], T]) -> T:
            if name not in files:
                raise InputError(f"bundle {bundle}: {name} is not listed in {MANIFEST}; expected it for its networks")
            try:
                return parse(files[name])
            except InputError as error:
                raise InputError(f"bundle {bundle}: {name} cannot be used ({error})") from error

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
            groups[same].sessions[network] = parsed(f"{network}/{network}.onnx", partial(_session, network=network))
        kill_time = parsed("killtime.json", KillTime.from_json) if "wall_reg" in group_of else None
        decision = None
        if "mem_clf" in group_of and "decision.json" in files:
            decision = parsed("decision.json", Decision.from_json)
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
        return cls(list(groups.values()), kill_time, decision)

    @property
    def answer_keys(self) -> tuple[str, ...]:
        held = {network for group in self._groups for network in group.sessions}
        return tuple(key for network in NETWORKS if network in held for key in ANSWER_KEYS[network])

    def predict(self, features: ArrayLike) -> Predictions:
        """Run every network on raw features of shape (n, 9), in the order of `calmlflow.hst.features.FEATURES`."""
        outputs, nearest = {}, {}
        for group in self._groups:
            scaled = group.scaling.apply(features)
            rows = group.seen.nearest(scaled) if group.seen else None
            for network, session in group.sessions.items():
                outputs[network] = session.run(None, {"features": scaled})[0]
                if rows is not None:
                    nearest[network] = rows
        return combine(outputs, nearest, self._decision, self._kill_time)


def _session(model: bytes, network: str) -> onnxruntime.InferenceSession:
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
    expected = [[len(FEATURES)]], [[len(LADDER) if network == "mem_clf" else 1]]
    if shapes != expected or session.get_inputs()[0].name != "features":
        raise InputError(f"{network}.onnx takes and gives {shapes}; expected {expected}")
    return session
