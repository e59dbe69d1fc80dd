"""Keep bundles on disk: a folder for each version, and for each stage a note of the versions it held last."""

# A version appears whole, by one rename. One process at a time fetches while the others wait; the files that it has
# when its time is over stay for the next try. A disk that is full or read-only costs the cache, not the answer.

import contextlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.manifest import MANIFEST, parse_manifest
from calmlflow.predictor.registry_client import (
    RegistryUnavailableError,
    StagedVersion,
    fetch,
    left_until,
    registry_name,
)
from calmlflow.settings import hide_password
from calmlflow.storage.files import LockedError, locked, replacing

log = logging.getLogger(__name__)

# Age of temporary files after which the process that wrote them was killed.
LEFT_BEHIND_S = 3600
# Between two tries to fetch while a caller waits, if there is another version to go on with.
RETRY_S = 60.0

_VERSION_FOLDER = re.compile(r"\d+-[0-9a-f]{12}")


class Cache:
    """Bundles of one registry on disk, by default in `calmlflow.settings.cache_dir`."""

    def __init__(self, registry_uri: str, root: Path | None = None):
        self._registry_uri = registry_uri
        # Absolute: a change of the working directory must not move it.
        self.folder = (root or settings.cache_dir()).absolute() / registry_name(registry_uri)

    def path(self, staged: StagedVersion) -> Path:
        return self.folder / staged.folder

    def load(self, staged: StagedVersion, timeout_s: float, hurried: bool = False) -> Bundle:
        """Load a version from disk, or fetch it from the registry within ``timeout_s``.

        A ``hurried`` caller waits, but has another version to go on with: it does not try what has just failed.
        """
        if bundle := self.load_kept(staged):
            return bundle
        failed, partial = (self.folder / f".{word}-{staged.folder}" for word in ("failed", "partial"))
        with contextlib.suppress(OSError):
            if hurried and 0 <= time.time() - failed.stat().st_mtime < RETRY_S:
                raise RegistryUnavailableError(
                    f"the last fetch of version {staged.version} failed; expected to try again {RETRY_S:.0f} s after it"
                )
        deadline = time.monotonic() + timeout_s
        with self.alone("fetch", deadline):
            # Fetched by another process while this one waited.
            if bundle := self.load_kept(staged):
                return bundle
            try:
                files = fetch(staged, self._registry_uri, left_until(deadline), partial)
                name = f"version {staged.version}"
                bundle = Bundle.read(parse_manifest(files[MANIFEST], name), files, name, settings.NETWORKS)
            except CalmlflowError:
                with contextlib.suppress(OSError):
                    failed.touch()
                raise
            shutil.rmtree(partial, ignore_errors=True)
            self._keep(staged, files)
        return bundle

    def load_kept(self, staged: StagedVersion) -> Bundle | None:
        """Load a version from disk; None if it is absent or damaged."""
        folder = self.path(staged)
        try:
            if not folder.is_dir():
                return None
            staged.check_manifest((folder / MANIFEST).read_bytes())
            return Bundle.load(folder, settings.NETWORKS)
        except (InputError, OSError) as error:
            log.warning(
                "the cached version %s cannot be used (%s); expected it whole and readable", staged.version, error
            )
            return None

    def recall(self, stage: str) -> list[StagedVersion]:
        """The version that a stage held when the registry was last asked, and the one before; may be empty."""
        try:
            noted = json.loads((self.folder / f"{stage}.json").read_text())["versions"]
            return [StagedVersion(str(int(one["version"])), str(one["source"]), one.get("sha256", "")) for one in noted]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []

    def remember(self, stage: str, staged: StagedVersion) -> bool:
        """Record what a stage holds, and remove versions that no stage held last or before; failures are logged.

        Gives whether that is news. Where the stage went back to an earlier version, those after it are not kept to
        answer in its place.
        """
        known = self.recall(stage)
        if known[:1] == [staged]:
            return False
        if staged in known:
            before = known[known.index(staged) + 1 :]
        else:
            before = [one for one in known if int(one.version) < int(staged.version)]
        try:
            with replacing(self.folder / f"{stage}.json") as file:
                noted = [
                    {"version": one.version, "source": one.source, "sha256": one.sha256} for one in (staged, *before)
                ]
                json.dump({"versions": noted[:2]}, file)
            self._prune()
        except CalmlflowError as error:
            log.warning("%s", error)
        return True

    @contextlib.contextmanager
    def alone(self, work: str, deadline: float) -> Iterator[None]:
        """Keep other processes from the same work, if a lock can be had at all: twice does no harm.

        Raises a RegistryUnavailableError where another process is still at it at the deadline (monotonic clock).
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / f".{work}.lock", deadline - time.monotonic()))
            except LockedError as error:
                raise RegistryUnavailableError(
                    f"another process, which fetches for all, got no version from {hide_password(self._registry_uri)} "
                    "in time; expected one: set CALMLFLOW_TIMEOUT higher, or try again"
                ) from error
            except CalmlflowError as error:
                log.warning("%s", error)
            yield

    def _keep(self, staged: StagedVersion, files: Mapping[str, bytes]) -> None:
        """Write a version beside its place, then rename; a failure is logged."""
        folder = self.path(staged)
        try:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".fetch-") as temporary:
                new = Path(temporary) / staged.folder
                for name, content in files.items():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).write_bytes(content)
                self._remove(folder)
                new.rename(folder)
        except OSError as error:
            words = "version %s cannot be kept (%s); expected room in a folder of yours: name one with CALMLFLOW_CACHE"
            log.warning(words, staged.version, error)

    def _remove(self, folder: Path) -> None:
        """Move a folder away in one step, so that no reader sees half of it, then delete it."""
        if folder.exists():
            aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=".old-"))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside, ignore_errors=True)

    def _prune(self) -> None:
        """Remove versions that no stage holds or held before, and temporary files of killed processes."""
        try:
            noted = [self.recall(note.stem) for note in self.folder.glob("*.json")]
            if [] in noted:
                # The versions of an unreadable note are not known.
                return
            wanted = {one.folder for versions in noted for one in versions}
            for path in self.folder.iterdir():
                temporary = path.name.startswith(".") and path.suffix != ".lock"
                if _VERSION_FOLDER.fullmatch(path.name) and path.name not in wanted:
                    self._remove(path)
                elif temporary and time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            # Another process may be removing the same files; the next version tries again.
            log.debug("cache folder %s was not pruned (%s)", self.folder, error.strerror)
