"""A bundle on disk: up to three networks, their scaling and the kill-time table, checked and run with onnxruntime."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.decision import Decision, SeenRows
from calmlflow.predictor.killtime import KillTime
from calmlflow.settings import KILL_TIME_MAX_S, NETWORKS

# onnxruntime keeps a device id in the home folder and reports its use, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

MANIFEST = "bundle.json"
FORMAT = 1

ANSWER_KEYS = {
    "mem_clf": ("memBin", "probabilities", "unseen"),
    "mem_reg": ("memVal",),
    "wall_reg": ("clockTime", "killTime"),
}
"""Keys of the answer that each network gives."""


Predictions = dict[str, NDArray[Any]]
"""What a bundle says of n jobs, by the names of the job record's columns; a key is absent where the bundle lacks its
network: bin_pred (n,) 0..3 (the rung decided on; the most probable one where the bundle has no decision.json),
probabilities (n, 4), mem_pred (n,) GB, wall_pred (n,) seconds, kill_time (n,) seconds, and unseen (n,) bool: unlike any
training job, and therefore given a rung more and the longest kill time."""


def combine(
    outputs: Mapping[str, NDArray],
    nearest: NDArray[np.int64] | None,
    decision: Decision | None,
    kill_time: KillTime | None,
) -> Predictions:
    """Make predictions of what networks say.

    Parameters
    ----------
    outputs : mapping of str to ndarray, shape (n, 4) or (n, 1)
        By network.
    nearest : ndarray of int, shape (n,), optional
        See `SeenRows.nearest`; without it no job is told to be unseen.
    decision : Decision, optional
    kill_time : KillTime, optional
    """
    found: Predictions = {}
    if "mem_clf" in outputs:
        probabilities = outputs["mem_clf"]
        found["probabilities"] = probabilities
        found["bin_pred"] = probabilities.argmax(axis=1)
        if decision:
            of_row = np.full(len(probabilities), -1) if nearest is None else nearest
            found["bin_pred"] = decision.choose(probabilities, of_row)
    if "mem_reg" in outputs:
        found["mem_pred"] = outputs["mem_reg"][:, 0].astype(float)
    if "wall_reg" in outputs:
        found["wall_pred"] = outputs["wall_reg"][:, 0].astype(float)
        if kill_time:
            found["kill_time"] = kill_time.apply(found["wall_pred"], nearest)
    if nearest is not None:
        found["unseen"] = unseen = nearest < 0
        # What the networks say of such a job is a guess: a rung more, and all the time there is.
        if "bin_pred" in found:
            found["bin_pred"] = np.minimum(found["bin_pred"] + unseen, len(LADDER) - 1)
        if "kill_time" in found:
            found["kill_time"] = np.where(unseen, KILL_TIME_MAX_S, found["kill_time"])
    return found


class Bundle:
    """Networks ready to run. Safe to share between threads.

    Files: ``{network}/{network}.onnx``, ``tx_data.json``, ``killtime.json`` (with wall_reg), ``decision.json`` (with
    mem_clf, optional), ``seen_rows.json`` (optional) and ``bundle.json``, which lists the networks and the SHA-256 of
    every file.
    """

    def __init__(
        self,
        sessions: dict[str, onnxruntime.InferenceSession],
        scaling: Scaling,
        kill_time: KillTime | None,
        decision: Decision | None,
        seen: SeenRows | None,
    ):
        self._sessions = sessions
        self._scaling = scaling
        self._kill_time = kill_time
        self._decision = decision
        self._seen = seen
        by_row = {
            "decision.json": len(decision.wallclock_ratio) if decision else 0,
            "killtime.json": len(kill_time.spread) if kill_time else 0,
        }
        for file, lines in by_row.items():
            if lines and lines != (seen.count if seen else 0) + 1:
                raise InputError(
                    f"{file} and seen_rows.json do not belong together; expected one line more in the first"
                )

    @classmethod
    def load(cls, folder: Path, networks: Sequence[str] | None = None) -> "Bundle":
        """Read and check a bundle.

        Parameters
        ----------
        folder : Path
        networks : sequence of str, optional
            Default: all that the bundle has.

        Raises
        ------
        InputError
            A file is missing, or not the one that the manifest lists.
        """
        manifest = read_manifest(folder)
        files = {name: _checked_bytes(folder, name, digest) for name, digest in manifest["sha256"].items()}

        def content(name: str) -> bytes:
            if name not in files:
                raise InputError(f"bundle {folder}: {name} is not listed in {MANIFEST}; expected it for its networks")
            return files[name]

        networks = manifest["networks"] if networks is None else networks
        scaling = Scaling.from_json(content("tx_data.json"))
        return cls(
            {network: _session(content(f"{network}/{network}.onnx"), folder, network) for network in networks},
            scaling,
            KillTime.from_json(content("killtime.json")) if "wall_reg" in networks else None,
            Decision.from_json(files["decision.json"]) if "decision.json" in files else None,
            SeenRows.read(files["seen_rows.json"], scaling) if "seen_rows.json" in files else None,
        )

    @property
    def answer_keys(self) -> tuple[str, ...]:
        """Keys of the answer that this bundle's networks give, in order."""
        return tuple(key for network in NETWORKS if network in self._sessions for key in ANSWER_KEYS[network])

    def predict(self, features: ArrayLike) -> Predictions:
        """Run every network of the bundle.

        Parameters
        ----------
        features : array_like, shape (n, 9)
            Raw features in the order of `calmlflow.hst.features.FEATURES`.
        """
        scaled = self._scaling.apply(features)
        outputs = {network: session.run(None, {"features": scaled})[0] for network, session in self._sessions.items()}
        nearest = self._seen.nearest(scaled) if self._seen else None
        return combine(outputs, nearest, self._decision, self._kill_time)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``bundle.json``: ``format`` (1), ``networks`` (list) and ``sha256`` (file -> hex digest)."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        known = (
            manifest["format"] == FORMAT
            and set(manifest["networks"]) <= set(NETWORKS)
            and all(isinstance(digest, str) for digest in manifest["sha256"].values())
        )
    except OSError as error:
        raise InputError(
            f"bundle {folder}: {MANIFEST} cannot be read ({error.strerror}); expected a bundle's folder"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{path} is damaged; expected format {FORMAT}, networks and sha256")
    return manifest


def write_manifest(folder: Path) -> None:
    """Complete a bundle: list its networks and the SHA-256 of every file in ``folder``."""
    networks = [network for network in NETWORKS if (folder / network / f"{network}.onnx").is_file()]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    digests = {path.relative_to(folder).as_posix(): _digest(path.read_bytes()) for path in files}
    text = json.dumps({"format": FORMAT, "networks": networks, "sha256": digests}, indent=2)
    (folder / MANIFEST).write_text(text)


def _checked_bytes(folder: Path, name: str, digest: str) -> bytes:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"bundle {folder}: {MANIFEST} lists {name!r}, which lies outside the bundle")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"bundle {folder}: {name} cannot be read ({error.strerror}); expected it as listed in {MANIFEST}"
        ) from None
    if _digest(content) != digest:
        raise InputError(f"bundle {folder}: {name} does not match its SHA-256 in {MANIFEST}; expected {digest[:12]}...")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _session(model: bytes, folder: Path, network: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # The networks are so small that a second thread costs more than it gives.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises a family of its own without a common public base.
        raise InputError(f"bundle {folder}: {network}.onnx is no ONNX network ({type(error).__name__})") from None
    shapes = (
        [inputs.shape[1:] for inputs in session.get_inputs()],
        [output.shape[1:] for output in session.get_outputs()],
    )
    expected = [[len(FEATURES)]], [[len(LADDER) if network == "mem_clf" else 1]]
    if shapes != expected or session.get_inputs()[0].name != "features":
        raise InputError(f"bundle {folder}: {network}.onnx takes and gives {shapes}; expected {expected}")
    return session
