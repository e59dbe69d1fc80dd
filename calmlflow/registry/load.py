"""Load the results of a training from a folder, a run or a registered version."""

import re
import tempfile
from pathlib import Path

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER_FILE
from calmlflow.registry.versions import find_version
from calmlflow.results.training import TrainingResults, read_training
from calmlflow.settings import hide_password, tracking_uri

_EXPECTED = "expected a training's folder, runs:/RUN_ID, models:/NAME/VERSION, models:/NAME/STAGE or models:/NAME@ALIAS"
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def load_results(source: str | Path) -> TrainingResults:
    """Load the results of a training. Needs no TensorFlow; a run or a version needs MLflow.

    Parameters
    ----------
    source : str or path
        A training's folder (or its ``results`` folder, or the folder of one target in there), ``runs:/RUN_ID``, or a
        version of a registered model: ``models:/calcloud-predictor/3``, ``/Production`` (any stage, or else the alias
        of the same name in lower case) or ``@alias``.

    Returns
    -------
    TrainingResults
        With ``mem_bin``, ``memory``, ``wallclock`` (None for a network that the run did not train) and ``jobs``.

    Raises
    ------
    InputError
        No such folder, run or version, no results in it, or a file that is missing, damaged or pickled; names it.
    CalmlflowError
        The server or its artifact store cannot be asked.

    Examples
    --------
    >>> challenger, champion = load_results("runs:/RUN_ID"), load_results("models:/calcloud-predictor/Production")
    >>> print(challenger.mem_bin.compare(champion.mem_bin))
    """
    text = str(source)
    if run := re.fullmatch("runs:/+([^/]+)/?", text):
        return _from_run(text, run[1])
    if text.startswith("models:/"):
        version = find_version(text)
        if not version.run_id:
            raise InputError(f"{text} comes from no run; expected a version that a training registered")
        return _from_run(text, version.run_id)
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:", text):
        raise InputError(f"results source is {text.partition(':')[0]}:...; {_EXPECTED}")
    if not Path(source).is_dir():
        raise InputError(f"results source {text!r} is no folder; {_EXPECTED}")
    return read_training(source, text)


def _from_run(source: str, run_id: str) -> TrainingResults:
    from mlflow import MlflowClient

    from calmlflow.registry.tracking import connect

    connect()
    server = hide_password(tracking_uri())
    with tempfile.TemporaryDirectory(prefix="calmlflow-") as temporary:
        try:
            client = MlflowClient()
            wanted = {"results", "data", f"models/{LADDER_FILE}"}
            for path in wanted & {
                each.path for place in (None, "models") for each in client.list_artifacts(run_id, place)
            }:
                client.download_artifacts(run_id, path, temporary)
        except Exception as error:
            # MLflow, requests and boto3 stand between here and the artifact store, and each raises errors of its own.
            code = getattr(error, "error_code", None)
            if code in _UNKNOWN:
                raise InputError(f"{source} does not exist on {server}; {_EXPECTED}") from error
            raise CalmlflowError(
                f"{source} cannot be fetched from {server} ({code or type(error).__name__}); expected its artifacts"
            ) from error
        if not (Path(temporary) / "results").is_dir():
            raise InputError(f"{source}: run {run_id} on {server} has no artifacts results/...; expected a training")
        try:
            return read_training(temporary, source)
        except InputError as error:
            # The folder is gone when the user reads this; the source is not.
            raise InputError(str(error).replace(temporary, source)) from error
