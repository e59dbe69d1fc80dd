"""Open job records by URI: a database to read and write, or anything that can be read."""

import re
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.jobs.records import Checked, check_parts
from calmlflow.jobs.stores.base import JOBS, Source, Store
from calmlflow.settings import DATABASE_SCHEMES, hide_password

# Share of a sample's datasets that have an older record too, as in a real archive.
_RERUNS = 0.02
_KNOWN = "a path, file://, sample, sample:N, sqlite://, postgresql://, dynamodb:// or s3://"


def open_store(uri: str, create: bool = False) -> Store:
    """Open a database of job records.

    Parameters
    ----------
    uri : str
        ``sqlite:///FILE``, ``postgresql://USER@HOST/DATABASE`` or ``dynamodb://TABLE?region=REGION``.
    create : bool
        Make the database's tables, or the SQLite file, if need be.
    """
    scheme = _scheme(uri)
    if scheme not in DATABASE_SCHEMES:
        if scheme not in (None, "file", "s3", "sample"):
            raise _unknown(scheme)
        raise InputError(
            f"{hide_password(uri)!r} is no database; expected sqlite:///FILE, postgresql://USER@HOST/DATABASE or "
            "dynamodb://TABLE?region=REGION: other places are read, and written as a whole by `copy`"
        )
    # Imported on demand: each needs a heavy library.
    if scheme == "dynamodb":
        from calmlflow.jobs.stores.dynamodb import open_dynamodb

        return open_dynamodb(uri, create)
    from calmlflow.jobs.stores.sql import open_sql

    return open_sql(uri, create)


def open_source(uri: str, seed: int = 0) -> Source:
    """Open job records to read them.

    Parameters
    ----------
    uri : str
        A database, see `open_store`; a path or ``file://`` URI of a CSV or Parquet file, of a folder (a training's, one
        with a table, one of Parquet files) or of an archive (``.zip``, ``.tgz``, ``.tar.gz``); ``s3://bucket/key`` of
        such a file or archive or of a SQLite file (``.db``, ``.sqlite``), or ``s3://bucket/prefix/`` of Parquet files;
        ``sample`` or ``sample:N`` (synthetic). A folder named ``sample`` is opened as ``./sample``.
    seed : int, default 0
        Of the synthetic sample.

    Raises
    ------
    CalmlflowError
        There are no job records, or the source cannot be reached.
    """
    if not uri.strip():
        raise InputError(f"data source is {uri!r}; expected {_KNOWN}")
    scheme = _scheme(uri)
    if scheme in DATABASE_SCHEMES:
        return open_store(uri)
    from calmlflow.jobs.stores.files import FileSource, open_object, open_path

    if uri == "sample" or scheme == "sample":
        from calmlflow.jobs.sample import draw_sample

        size = uri.removeprefix("sample").removeprefix(":") if uri != "sample" else "20000"
        if not re.fullmatch("[0-9]{1,9}", size):
            raise InputError(f"sample size is {size!r}; expected sample:N with a whole number N, 1 or more")
        return FileSource(uri, lambda table: iter([draw_sample(int(size), seed, _RERUNS)] if table is JOBS else []))
    if scheme == "s3":
        return open_object(uri)
    if scheme in (None, "file"):
        return open_path(Path(uri) if scheme is None else _file_path(uri))
    raise _unknown(scheme)


def read_jobs(uri: str, seed: int = 0) -> Checked:
    """Read and check job records, see `open_source` and `check_parts`; an InputError tells that none is valid."""
    with closing(open_source(uri, seed)) as source:
        return check_parts(source.read(JOBS), hide_password(uri))


def read_table(uri: str, seed: int = 0) -> pd.DataFrame:
    """Read job records as they are, unchecked; see `open_source`."""
    with closing(open_source(uri, seed)) as source:
        parts = list(source.read(JOBS))
    return pd.concat(parts) if parts else pd.DataFrame(columns=list(JOBS.columns))


def is_database(uri: str) -> bool:
    """Whether a URI is one of a database, which `open_store` opens."""
    return _scheme(uri) in DATABASE_SCHEMES


def parse_target(uri: str) -> str:
    """The path or ``s3://`` URI of a file to write; a ``file://`` URI becomes its path."""
    scheme = _scheme(uri)
    if scheme == "file":
        return str(_file_path(uri))
    if scheme == "s3":
        return "s3://" + uri.partition("://")[2]
    if scheme not in (None, "sample"):
        raise _unknown(scheme)
    return uri


def _scheme(uri: str) -> str | None:
    # At least two letters: one is a drive.
    found = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+):", uri)
    return found[1].lower() if found else None


def _unknown(scheme: str) -> InputError:
    # The rest of the URI may hold a password.
    return InputError(f"data source has the unknown scheme {scheme!r}; expected {_KNOWN}")


def _file_path(uri: str) -> Path:
    host, slash, path = uri.partition(":")[2].removeprefix("//").partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"data source {uri!r} names no local file; expected file:///absolute/path")
    return Path("/" + unquote(path))
