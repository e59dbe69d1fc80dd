"""Remove artifacts of deleted runs, and files of registered versions beyond a retention rule."""

import logging
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlRun
from mlflow.tracking._tracking_service.utils import _get_sqlalchemy_store
from mlflow.utils import get_results_from_paginated_fn

from calmlflow.console import progress
from calmlflow.errors import CalmlflowError
from calmlflow.registry.gate import reference_version
from calmlflow.registry.history import production_order
from calmlflow.registry.versions import EXCLUSIVE, State, read_state
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS
from calmlflow.storage.s3 import S3Object, asking, list_objects

_BATCH = 1000
# What one run or one logged model has of its own: the source of a version might name more, such as an experiment.
_OWN = re.compile(r"(?:.+/)?(?:m-)?[0-9a-f]{32}/artifacts(?:/.+)?")


def collect(
    client: Any, root: S3Object, database_uri: str, keep: int, older_than_days: float, delete: bool
) -> list[tuple[str, int, int]]:
    """Find what may go, and with ``delete`` remove it; gives the name, the number of files and of bytes of each.

    That is what is older than some days of this: deleted runs, with the models that they logged, deleted models, and
    the files of versions of this project. Never what a version that stays has or refers to: one of another model, in a
    stage, with an alias, among the ``keep`` newest, or among the ``keep`` that a rollback would come to one by one; or
    the reference of the gate.

    ``root`` is the prefix of all artifacts. MLflow's variables name the workspace, where the database has some.
    """
    # It tells of tables that it looks for.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    # MLflow's client would make a folder for artifacts here.
    api, store = MlflowClient(registry_uri=database_uri), _get_sqlalchemy_store(database_uri, "mlflow-artifacts:/")
    age_ms = older_than_days * 86_400_000
    listed = list_objects(client, root, "the server's artifacts")
    sizes = {item["Key"].removeprefix(root.key): item["Size"] for item in listed}
    keys = sorted(sizes)

    def below(place: str) -> list[str]:
        # "0" is the character after "/".
        return keys[bisect_left(keys, f"{place}/") : bisect_left(keys, f"{place}0")]

    models = get_results_from_paginated_fn(
        lambda count, token: api.search_registered_models(None, count, page_token=token), 100
    )
    states = [read_state(model.name, database_uri) for model in models]
    versions = {(state.model, number): version for state in states for number, version in state.versions.items()}
    uris = {key: api.get_model_version_download_uri(key[0], str(key[1])) for key in versions}
    places = {key: _place(uri, root) for key, uri in uris.items()}
    whole = {key for key, place in places.items() if below(place)}
    kept = {(state.model, number) for state in states for number in _kept(state, keep, age_ms, whole)}
    # A mixed bundle names the versions and the runs that its networks come from, the history the runs of the gate.
    tags = [tag for key in kept for tag in versions[key].tags.items()]
    parts = {value.removeprefix("version ") for name, value in tags if name.startswith("part.")}
    kept |= {key for key in versions if key[0] == BUNDLE_MODEL and str(key[1]) in parts}
    texts = [text for key in kept for text in (uris[key], versions[key].run_id, *versions[key].tags.values())]
    named = set(re.findall(r"\b[0-9a-f]{32}\b", " ".join(texts)))
    kept |= {key for key, version in versions.items() if version.run_id in named}
    held = [f"{places[key]}/" for key in kept if places[key]]

    # Name, URI, and what to do once the files are gone.
    found: list[tuple[str, str, Callable[[], object]]] = []
    runs, gone = set(store._get_deleted_runs(age_ms)) - named, set(store._get_deleted_logged_models(age_ms))
    with store.ManagedSessionMaker() as session:
        for row in store._get_query(session, SqlLoggedModel):
            if row.model_id in gone or row.source_run_id in runs:
                forget_model = partial(store._hard_delete_logged_model, row.model_id)
                found.append((f"model {row.model_id}", row.artifact_location, forget_model))
        for row in store._get_query(session, SqlRun):
            if row.run_uuid in runs:
                found.append((f"run {row.run_uuid}", row.artifact_uri, partial(store._hard_delete_run, row.run_uuid)))
    old = {str(versions[key]): key for key in versions if key not in kept}
    found += [(name, uris[key], lambda: None) for name, key in old.items()]

    def may_go(place: str) -> bool:
        # Of two places, one may lie in the other.
        lies = (f"{place}/".startswith(other) or other.startswith(f"{place}/") for other in held)
        return bool(_OWN.fullmatch(place)) and not any(lies)

    def is_taken(name: str) -> bool:
        # Removing takes minutes, and somebody may promote or name an old version meanwhile.
        if not delete or name not in old:
            return False
        now = api.get_model_version(old[name][0], str(old[name][1]))
        return now.current_stage in EXCLUSIVE or bool(now.aliases)

    told = []
    with progress("removing" if delete else "looking", "runs, models and versions", len(found)) as update:
        for number, (name, uri, forget) in enumerate(found, start=1):
            place = _place(uri, root)
            theirs = [key for key in below(place) if key in sizes]
            if may_go(place) and (theirs or name not in old) and not is_taken(name):
                told.append((name, len(theirs), sum(map(sizes.pop, theirs))))
                if delete:
                    _remove(client, root, theirs)
                    forget()
            update(number)
    return told


def _kept(state: State, keep: int, age_ms: float, whole: Set[tuple[str, int]]) -> set[int]:
    """Versions of a registered model that stay for their own sake."""
    if state.model not in (BUNDLE_MODEL, *NETWORK_MODELS.values()):
        return set(state.versions)
    held = {number for number, stage in state.stages.items() if stage in EXCLUSIVE} | set(state.aliases.values())
    young = {number for number, version in state.versions.items() if version.created_ms > time.time() * 1000 - age_ms}
    # See `calmlflow.registry.promote.roll_back`.
    order = [number for number in production_order(state.events) if (state.model, number) in whole]
    present = state.held_by("Production")
    champion = state.versions.get(present or 0)
    # The gate holds every challenger against it.
    best = reference_version(state, champion, champion, "best") if champion else None
    way_back = [number for number in order if number != present and not state.was_rolled_back(number)]
    return {*held, *young, *sorted(state.versions)[-keep:], *way_back[-keep:], *([best.number] if best else ())}


def _place(uri: str, root: S3Object) -> str:
    """Where files of a URI of MLflow's lie below the root; empty where they are elsewhere."""
    if uri.startswith(str(root)):
        return uri.removeprefix(str(root)).strip("/")
    parts = urlsplit(uri)
    path = parts.path if parts.scheme == "mlflow-artifacts" else parts.path.partition("/mlflow-artifacts/artifacts/")[2]
    return path.strip("/")


def _remove(client: Any, root: S3Object, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), _BATCH):
        objects = [{"Key": root.key + key} for key in keys[start : start + _BATCH]]
        with asking(root, "changed", "credentials that may delete"):
            done = client.delete_objects(Bucket=root.bucket, Delete={"Objects": objects, "Quiet": True})
        if failed := done.get("Errors"):
            raise CalmlflowError(f"{root} keeps {failed[0]['Key']} ({failed[0]['Code']}); expected it to be deleted")
