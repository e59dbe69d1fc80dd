"""Back up the database and the artifacts of a server into a folder, and restore them into an empty server."""

# objects/{aa}/{SHA-256} holds every file once; backup-{time}.json lists those of one backup and is written last.

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from calmlflow.console import progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import access, database
from calmlflow.server import supervisor as embedded
from calmlflow.server.processes import Deployment
from calmlflow.storage.files import locked, replacing
from calmlflow.storage.s3 import S3Object, download, list_objects, upload

_FORMAT = 1
_EMPTY = "expected a server that was never started"
_WORKERS = 16


def back_up(destination: Path, home: Path) -> dict[str, Any]:
    """Copy what a server keeps into a folder, of which only files that no earlier backup there has.

    Gives ``backup`` (the path of its list), ``files`` and ``bytes``, and of these ``copied`` and ``copied_bytes``.
    """
    scratch = destination / ".partial"
    with ExitStack() as stack:
        stack.enter_context(locked(destination / ".lock"))
        server, client, root = stack.enter_context(embedded.held_store(home))
        # Of a backup that was killed.
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in (scratch, destination / "objects"):
            folder.mkdir(mode=0o700, exist_ok=True)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        # Before the artifacts: the store has all that it refers to by now.
        uri = server.deployment.database_uri(home)
        database.back_up(uri, scratch / "database")
        if (home / "jobs.db").exists():
            database.back_up(f"sqlite:///{home / 'jobs.db'}", scratch / "jobs.db")
        if (home / "webhook.key").exists():
            shutil.copy(home / "webhook.key", scratch)
        kept = {path.name: _keep(path, destination) for path in sorted(scratch.iterdir())}
        earlier = sorted(destination.glob("backup-*.json"))
        known = _read(earlier[-1])["artifacts"] if earlier else {}
        artifacts = {key: known[key] for key in known if _is_kept(known[key], destination)}
        listed = _listed(client, root)
        new = [key for key, etag in listed.items() if artifacts.get(key, {}).get("etag") != etag]

        def fetch(key: str) -> dict[str, Any]:
            path = scratch / hashlib.sha256(key.encode()).hexdigest()
            download(S3Object(root.bucket, root.key + key), path, "an artifact that nobody removes meanwhile", client)
            return {**_keep(path, destination), "etag": listed[key]}

        artifacts |= dict(zip(new, _each("copying", new, fetch), strict=True))
        found: dict[str, Any] = {
            "format": _FORMAT,
            "database": make_url(uri).get_backend_name(),
            "files": kept,
            "artifacts": {key: artifacts[key] for key in listed},
        }
        path = destination / f"backup-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.json"
        with replacing(path, private=True) as file:
            json.dump(found, file, indent=1)
    copied = {"copied": len(new), "copied_bytes": sum(artifacts[key]["size"] for key in new)}
    return {**_summary(path, found["artifacts"]), **copied}


def restore(source: Path, home: Path, deployment: Deployment) -> dict[str, Any]:
    """Fill an empty server with a backup: the newest one of a folder, or that of a list ``backup-{time}.json``.

    Nothing is changed where the server holds anything, or where a file of the backup is missing or is not the one that
    was backed up. Gives ``backup``, ``files`` and ``bytes``.
    """
    path = max(source.glob("backup-*.json"), default=source) if source.is_dir() else source
    folder, found = path.parent, _read(path)
    uri = deployment.database_uri(home)
    if (kind := make_url(uri).get_backend_name()) != found["database"]:
        raise InputError(f"{path} is a backup of {found['database']}; expected one of {kind}, as the server's database")
    files, artifacts = found["files"], found["artifacts"]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with embedded.stopped(home), ExitStack() as stack:
        if database.tables(uri) or (home / "jobs.db").exists():
            raise CalmlflowError(f"the database of {home} holds something; {_EMPTY}")
        _each("comparing", [*files.values(), *artifacts.values()], lambda entry: _compare(entry, folder))
        client, root = stack.enter_context(embedded.artifact_store(embedded.Server(0, 0, 0, home, deployment)))
        if _listed(client, root):
            raise CalmlflowError(f"the artifact store {root} holds something; {_EMPTY}")

        def send(key: str) -> None:
            upload(_place(folder, artifacts[key]), S3Object(root.bucket, root.key + key), client)

        _each("restoring", artifacts, send)
        # No other names: whoever wrote the list could choose a place anywhere.
        for name in files.keys() & {"jobs.db", "webhook.key"}:
            with replacing(home / name, "wb", private=True) as file, _place(folder, files[name]).open("rb") as held:
                shutil.copyfileobj(held, file)
        # Last: a server without it holds nothing that anybody sees.
        database.restore(uri, _place(folder, files["database"]))
        deployment = replace(deployment, auth="users" in database.tables(uri))
        if deployment.auth:
            embedded.prepare_auth(home, deployment)
            access.reset_admin(home, uri)
        embedded.remember(home, deployment)
    return _summary(path, artifacts)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] == _FORMAT:
            return found
        reason = f"its format is {found['format']}, and not {_FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = type(error).__name__
    raise InputError(
        f"{path} is no backup ({reason}); expected a folder, or its list backup-*.json, of `calmlflow server backup`"
    )


def _listed(client: Any, root: S3Object) -> dict[str, str]:
    """Key below the root -> ETag, of every object."""
    found = list_objects(client, root, "the server's artifacts")
    return {item["Key"].removeprefix(root.key): item["ETag"] for item in found}


def _each(act: str, items: Collection[Any], work: Callable[[Any], Any]) -> list[Any]:
    """Results of all items, in order, by several threads; the first failure ends it."""
    results = []
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        with progress(act, "files", len(items)) as update:
            for result in pool.map(work, items):
                results.append(result)
                update(len(results))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _place(folder: Path, entry: Mapping[str, Any]) -> Path:
    sha256 = str(entry["sha256"])
    return folder / "objects" / sha256[:2] / sha256


def _is_kept(entry: Mapping[str, Any], folder: Path) -> bool:
    """Whether its file is there, and not one that a machine that stopped left empty or cut short."""
    place = _place(folder, entry)
    return place.is_file() and place.stat().st_size == entry["size"]


def _keep(path: Path, folder: Path) -> dict[str, Any]:
    """Move a file among the objects, under its SHA-256."""
    entry = {"sha256": _sha256(path), "size": path.stat().st_size}
    place = _place(folder, entry)
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
    return entry


def _compare(entry: Mapping[str, Any], folder: Path) -> None:
    place = _place(folder, entry)
    if not place.is_file() or _sha256(place) != entry["sha256"]:
        raise CalmlflowError(f"{place} is missing or damaged; expected the file that was backed up: use another backup")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary(path: Path, artifacts: Mapping[str, Any]) -> dict[str, Any]:
    return {"backup": str(path), "files": len(artifacts), "bytes": sum(one["size"] for one in artifacts.values())}
