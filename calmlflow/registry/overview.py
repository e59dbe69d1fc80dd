"""List every version: its stage, its scores, the jobs it was trained on, where it is served; and what is amiss."""

import math
import re
import time
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import DEFAULT
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.http_client import get
from calmlflow.predictor.registry_client import StagedVersion, is_http
from calmlflow.registry.history import production_order
from calmlflow.registry.versions import EXCLUSIVE, State, Version, read_state
from calmlflow.results.scores import SCORES, headlines

Entry = Mapping[str, Any]

LOOKED_AT = 20
"""Versions of each model whose files are looked for; each takes a request."""

STORE_PATIENCE_S = 10.0


def read_models() -> dict[str, State]:
    """The bundle's registered model and those of the networks; without versions where one does not exist yet."""
    found = {}
    for model in (settings.BUNDLE_MODEL, *settings.NETWORK_MODELS.values()):
        try:
            found[model] = read_state(model)
        except InputError:
            found[model] = State(model, {}, {})
    return found


def gone_files(state: State) -> set[int]:
    """Versions that a stage holds or a rollback may go to, and whose files the artifact store has no more.

    The newest `LOOKED_AT` are looked at; none is named where the server or its store does not say.
    """
    uri = settings.registry_uri()
    wanted = {*production_order(state.events), *(n for n, stage in state.stages.items() if stage in EXCLUSIVE)}
    newest = sorted(wanted & state.versions.keys())[-LOOKED_AT:] if is_http(uri) else []

    def is_gone(number: int) -> bool:
        query = urlencode({"path": "MLmodel", "name": state.model, "version": number})
        status, body = get(uri, f"/model-versions/get-artifact?{query}", STORE_PATIENCE_S)
        return status != 200 and bool(re.search(rb"(?i)\b404\b|not found|no such|does not exist", body))

    pool = ThreadPoolExecutor(8)
    try:
        return {number for number, gone in zip(newest, pool.map(is_gone, newest), strict=True) if gone}
    except CalmlflowError as error:
        say(f"warning: the files of {state.model} are not looked for: {error}")
        return set()
    finally:
        pool.shutdown(cancel_futures=True)


def by_stage(state: State, gone: Container[int] = ()) -> dict[str, list[Entry]]:
    """Stage -> versions, newest first; ready for JSON.

    A version has ``version``, ``created`` (ISO 8601, UTC) and ``age_days``, ``status`` (READY), ``data`` (URI of its
    jobs), ``jobs`` (how many), ``newest_job`` (date) and ``data_age_days``, ``scores`` (target -> score -> value, of
    its held-out jobs), ``ladder`` (its version), ``runs`` (network -> run id), ``gate`` (passed, refused or forced),
    ``aliases``, ``uri`` (what it is served by), ``files_gone`` (whether its number is among those that are ``gone``,
    see `gone_files`) and ``cached_here`` (whether the predictor of this machine has it on disk). What a version does
    not know of itself is None or empty.
    """
    newest_first = sorted(state.versions.values(), key=lambda version: -version.number)
    found = {}
    for stage in ("Production", "Staging", "None", "Archived"):
        if versions := [version for version in newest_first if version.stage == stage]:
            found[stage] = [_described(state, version, version.number in gone) for version in versions]
    return found


def problems(state: State) -> list[str]:
    """Moves and aliases that the history does not explain, and what to do about each, a sentence each."""
    found, mend = [], "`calmlflow stages --repair` records it"
    for version in state.unrecorded():
        event = state.cut_short(version.number)
        how = f"its {event.action} was cut short" if event else f"it was moved {version.past_the_gate}"
        found.append(f"{version} is in {version.stage} and the history does not say how: {how}; {mend}")
    if wrong := state.wrong_aliases():
        found.append(f"aliases of {state.model} do not name the versions of their stages: {', '.join(wrong)}; {mend}")
    if state.has_stages:
        return found
    for alias, number in state.aliases.items():
        if alias in {stage.lower() for stage in EXCLUSIVE} and (named := state.versions.get(number)):
            # Predictors follow it.
            how = f"it was moved {named.past_the_gate}"
            found.append(f"{named} is @{alias} and in no stage: {how}; `calmlflow promote` judges it")
    return found


def _described(state: State, version: Version, is_gone: bool) -> Entry:
    tags = version.tags
    newest_s = _number(tags.get("newest_job")) or 0
    # 0 stands for a table without timestamps; past the year 5138 it is no second.
    known = 0 < newest_s < 1e11
    jobs = _number(tags.get("jobs"))
    scores: dict[str, dict[str, float]] = {}
    for target in SCORES:
        for name in headlines(target):
            if (value := _number(tags.get(f"score.{target}.{name}"))) is not None:
                scores.setdefault(target, {})[name] = value
    staged = StagedVersion(str(version.number), version.source)
    return {
        "version": version.number,
        "created": datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        "age_days": _days_since(version.created_ms / 1000),
        "status": version.status,
        "data": tags.get("data"),
        "jobs": None if jobs is None else int(jobs),
        "newest_job": datetime.fromtimestamp(newest_s, UTC).date().isoformat() if known else None,
        "data_age_days": _days_since(newest_s) if known else None,
        "ladder": tags.get("ladder", DEFAULT.version),
        "scores": scores,
        "runs": {name.removeprefix("run."): run_id for name, run_id in tags.items() if name.startswith("run.")},
        "gate": tags.get("gate"),
        "aliases": sorted(alias for alias, number in state.aliases.items() if number == version.number),
        "uri": f"models:/{version.model}/{version.stage if version.stage in EXCLUSIVE else version.number}",
        "files_gone": is_gone,
        "cached_here": Cache(settings.registry_uri()).path(staged).is_dir(),
    }


def _days_since(epoch_s: float) -> float:
    return round((time.time() - epoch_s) / 86_400, 1)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
