"""Bundles on disk: a folder for each version, and for each stage a note of what it held last.

Many processes share it. A version appears whole, by one rename; who finds it damaged fetches it again; one process at a
time fetches, the others wait for it. A disk that is full or cannot be written costs the cache, not the answer.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.fetch import fetch
from calmlflow.predictor.manifest import MANIFEST, parse_manifest
from calmlflow.predictor.registry_client import RegistryUnavailableError
from calmlflow.predictor.stage import IMPORT_S, StagedVersion
from calmlflow.settings import hide_password

log = logging.getLogger(__name__)

LEFT_BEHIND_S = 3600
"""Age after which what a killed process left behind is removed."""

PATIENCE, HURRIED = 10, 3
"""How many times `calmlflow.settings.timeout_s` a version may take, without and with another one to go on with."""

RETRY_S = 60.0
"""Seconds after which a version that could not be had is tried again, where there is another one."""

_POLL_S = 0.02
_VERSION_FOLDER = re.compile(r"\d+-[0-9a-f]{12}")


class Cache:
    """Bundles of one registry on disk.

    Parameters
    ----------
    registry_uri : str
    root : Path, optional
        Default: `calmlflow.settings.cache_dir`.
    """

    def __init__(self, registry_uri: str, root: Path | None = None):
        self._registry_uri = registry_uri
        # Two registries must not share versions.
        name = hashlib.sha256(hide_password(registry_uri).encode()).hexdigest()[:12]
        # Absolute: a process that goes to another folder later keeps its cache.
        self.folder = (root or settings.cache_dir()).absolute() / name

    def path(self, staged: StagedVersion) -> Path:
        """Folder of the files of a version."""
        return self.folder / staged.folder

    def load(self, staged: StagedVersion, hurried: bool = False) -> Bundle:
        """Load a version, from disk if it is there and whole, else from the registry.

        Parameters
        ----------
        staged : StagedVersion
        hurried : bool
            Somebody waits who has another version to go on with: some seconds must do, and what could not be fetched a
            moment ago is not tried again.

        Raises
        ------
        RegistryUnavailableError
            It is not on disk, and cannot be fetched.
        InputError
            The version is no whole bundle.
        """
        bundle = self.load_kept(staged)
        if bundle:
            return bundle
        failed = self.folder / f".failed-{staged.folder}"
        if hurried and _age_s(failed) < RETRY_S:
            raise RegistryUnavailableError(
                f"version {staged.version} could not be had a moment ago; expected it {RETRY_S:.0f} s after that"
            )
        patience_s = (HURRIED if hurried else PATIENCE) * settings.timeout_s()
        with self.alone("fetch", patience_s):
            bundle = self.load_kept(staged)
            if bundle:
                # Another process was first.
                return bundle
            try:
                files = fetch(staged, self._registry_uri, patience_s + (0 if hurried else IMPORT_S))
                name = f"version {staged.version}"
                bundle = Bundle.read(parse_manifest(files[MANIFEST], name), files, name, settings.NETWORKS)
            except CalmlflowError:
                with contextlib.suppress(OSError):
                    failed.touch()
                raise
            self._keep(staged, files)
        return bundle

    def load_kept(self, staged: StagedVersion) -> Bundle | None:
        """Load a version from disk; None where it is not there, or damaged."""
        folder = self.path(staged)
        try:
            return Bundle.load(folder, settings.NETWORKS) if folder.is_dir() else None
        except InputError as error:
            log.warning("%s", error)
        except OSError as error:
            log.warning("cache folder %s cannot be read (%s); expected one of yours", folder, error.strerror)
        return None

    def recall(self, stage: str) -> list[StagedVersion]:
        """What a stage held when the registry was last asked, and before that; none where nobody knows."""
        try:
            noted = json.loads((self.folder / f"{stage}.json").read_text())
            return [StagedVersion(str(one["version"]), str(one["source"])) for one in noted["versions"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def remember(self, stage: str, staged: StagedVersion) -> None:
        """Note what a stage holds, for a time when the registry cannot be asked; a failure to is only logged.

        The first time, versions that no stage held last or before that are removed.
        """
        known = self.recall(stage)
        if known[:1] == [staged]:
            return
        kept = [staged, *(one for one in known if one != staged)][:2]
        text = json.dumps({"versions": [{"version": one.version, "source": one.source} for one in kept]})
        note: Path | None = None
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".note-", delete=False) as file:
                note = Path(file.name)
                file.write(text)
            # Whoever may read the versions must know which of them was the last.
            note.chmod(0o644)
            note.replace(self.folder / f"{stage}.json")
        except OSError as error:
            if note is not None:
                note.unlink(missing_ok=True)
            log.warning("%s cannot be written (%s)", self.folder / f"{stage}.json", error.strerror)
            return
        self._prune()

    @contextlib.contextmanager
    def alone(self, work: str, patience_s: float) -> Iterator[None]:
        """Keep other processes from the same work.

        After so many seconds of waiting, or where there can be no lock, go on without: the work is safe to do twice.
        """
        deadline = time.monotonic() + patience_s
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.folder / f".{work}.lock").open("a"))
                # Also by closing the file, however the process ends; but not while a child that it forked has it too.
                stack.callback(fcntl.flock, file, fcntl.LOCK_UN)
                while time.monotonic() < deadline:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(_POLL_S)
            except OSError as error:
                log.warning("cache folder %s cannot be written (%s)", self.folder, error.strerror)
            yield

    def _keep(self, staged: StagedVersion, files: Mapping[str, bytes]) -> None:
        """Write a version beside its place, then rename; a failure to is only logged."""
        folder = self.path(staged)
        temporary: Path | None = None
        try:
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".fetch-"))
            for name, content in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(content)
            temporary.chmod(0o755)
            self._remove(folder)
            temporary.rename(folder)
        except OSError as error:
            log.warning(
                "version %s cannot be kept in cache folder %s (%s); expected room in a folder of yours: name one with "
                "CALMLFLOW_CACHE",
                staged.version,
                self.folder,
                error.strerror,
            )
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Take a folder away in one step, so that nobody reads half of it; then its files."""
        if folder.exists():
            aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=".old-"))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside, ignore_errors=True)

    def _prune(self) -> None:
        """Remove the versions that no stage holds or held before, and what killed processes left behind."""
        try:
            noted = [self.recall(note.stem) for note in self.folder.glob("*.json")]
            if [] in noted:
                # Nobody knows what that stage needs.
                return
            wanted = {one.folder for versions in noted for one in versions}
            for path in self.folder.iterdir():
                old = _VERSION_FOLDER.fullmatch(path.name) and path.name not in wanted
                left = path.name.startswith((".fetch-", ".old-", ".note-", ".failed-"))
                if old:
                    self._remove(path)
                elif left and time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            # Another process may remove the same; what stays is tried again with the next version.
            log.debug("cache folder %s was not pruned (%s)", self.folder, error.strerror)


def _age_s(path: Path) -> float:
    """Seconds since a file was written; infinity where there is none, or one from the future."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
    return age_s if age_s >= 0 else math.inf
