"""Job records in the archives of trainings, ours and those of the earlier library spacekit."""

import tempfile
from pathlib import Path

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.formats import read_parts
from calmlflow.jobs.stores.read_only import ReadOnly, jobs_only
from calmlflow.storage.archive import extract

_EXPECTED = "expected one data/latest.csv, latest.csv or other CSV file"
_SHOWN = 10


def open_archive(archive: Path, shown: str) -> ReadOnly:
    """Open an archive of a training to read its table.

    That is the member ``data/latest.csv`` in whatever folder, else ``latest.csv``, else the only CSV file.

    Parameters
    ----------
    archive : Path
        ``.zip``, ``.tgz`` or ``.tar.gz``.
    shown : str
        What errors call it.

    Raises
    ------
    InputError
        It is damaged, or holds no such member or several.
    """
    if not archive.is_file():
        raise InputError(f"{shown} does not exist; expected an archive of a training")
    folder = tempfile.TemporaryDirectory(prefix="calmlflow-archive-")
    try:
        extract(archive, Path(folder.name))
        wanted = _table_of(Path(folder.name), shown)
        table = Path(folder.name, wanted)
    except InputError as error:
        folder.cleanup()
        raise InputError(str(error).replace(str(archive), shown)) from None
    except OSError as error:
        folder.cleanup()
        raise CalmlflowError(f"{shown} cannot be read ({error.strerror}); expected room for its table") from None
    except BaseException:
        folder.cleanup()
        raise
    return ReadOnly(shown, jobs_only(lambda: read_parts(table, f"{shown}, member {wanted}")), folder.cleanup)


def _table_of(folder: Path, shown: str) -> str:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    tables = [name for name in names if name.lower().endswith(".csv") and _is_own(name)]
    in_data = [name for name in tables if f"/{name}".endswith("/data/latest.csv")]
    latest = [name for name in tables if f"/{name}".endswith("/latest.csv")]
    found = in_data or latest or tables
    if len(found) != 1:
        listed = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        held = f"{len(found)} tables ({listed})" if found else "no CSV file"
        raise InputError(f"archive {shown} holds {held}; {_EXPECTED}")
    return found[0]


def _is_own(name: str) -> bool:
    """Not one of the files that systems add on their own."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/") if part != ".")
