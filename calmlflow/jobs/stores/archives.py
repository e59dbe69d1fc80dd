"""Job records in the archives of trainings, ours and those of the earlier library spacekit."""

import tempfile
from contextlib import closing
from pathlib import Path

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.formats import read_parts
from calmlflow.jobs.stores.read_only import ReadOnly, jobs_only
from calmlflow.storage.archive_members import Member, is_safe, read_members

MAX_TABLE_BYTES = 1 << 30
"""A table of four million records has as many."""

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
        It is damaged, or holds no such member or several, or one of more than `MAX_TABLE_BYTES`.
    """
    if not archive.is_file():
        raise InputError(f"{shown} does not exist; expected an archive of a training")
    folder = tempfile.TemporaryDirectory(prefix="calmlflow-archive-")
    try:
        # A tar has no list of its members: the first pass makes one.
        names = [member.name for member in read_members(archive) if not member.is_folder]
        wanted = _table_of(names, shown)
        table = Path(folder.name) / "latest.csv"
        for member in read_members(archive):
            if member.name == wanted and not member.is_folder:
                _extract(member, table, shown)
                break
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


def _table_of(names: list[str], shown: str) -> str:
    # Made of a folder's own contents (tar czf x.tgz .), its names start with ./
    tables = [
        name for name in names if name.lower().endswith(".csv") and is_safe(name.removeprefix("./")) and _is_own(name)
    ]
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


def _extract(member: Member, table: Path, shown: str) -> None:
    size = 0
    with closing(table.open("wb")) as file:
        for chunk in member.chunks:
            size += len(chunk)
            if size > MAX_TABLE_BYTES:
                raise InputError(
                    f"archive {shown}: member {member.name!r} has more than {MAX_TABLE_BYTES} bytes; expected a table "
                    "of job records"
                )
            file.write(chunk)
