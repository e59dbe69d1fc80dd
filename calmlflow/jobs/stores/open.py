"""Open a store of job records, or read its records, by one URI."""

import re
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.jobs.records import Checked, check_records
from calmlflow.jobs.stores.base import JOBS, Store
from calmlflow.settings import DATABASE_SCHEMES, hide_password

_OPENERS = {
    "sqlite": ("calmlflow.jobs.stores.sql", "open_sql"),
    "postgresql": ("calmlflow.jobs.stores.sql", "open_sql"),
    "postgresql+psycopg": ("calmlflow.jobs.stores.sql", "open_sql"),
    "postgres": ("calmlflow.jobs.stores.sql", "open_sql"),
    "dynamodb": ("calmlflow.jobs.stores.dynamodb", "open_dynamodb"),
    "s3": ("calmlflow.jobs.stores.objects", "open_objects"),
}
# Scheme -> what opens a store: imported when it is asked for, since each stands on a heavy library.

_KNOWN = "a path, file://, sample, sample:N, sqlite://, postgresql://, dynamodb:// or s3://"


def open_store(uri: str, create: bool = False, seed: int = 0) -> Store:
    """Open a store of job records.

    Parameters
    ----------
    uri : str
        A path or ``file://`` URI of a CSV or Parquet file, of a folder (a training's, one with a table, one of Parquet
        files) or of an archive (``.zip``, ``.tgz``, ``.tar.gz``); ``s3://bucket/key`` of any of these, of a SQLite file
        (``.db``, ``.sqlite``), or ``s3://bucket/prefix/`` of Parquet files; ``sqlite:///FILE``;
        ``postgresql://USER@HOST/DATABASE``; ``dynamodb://TABLE?region=...``; ``sample`` or ``sample:N`` (synthetic). A
        folder that is itself named ``sample`` is opened as ``./sample``.
    create : bool
        Whether it may be made if it is not there yet.
    seed : int, default 0
        Of the synthetic sample.

    Raises
    ------
    InputError
        An unknown scheme, nothing there, or what is there holds no job records.
    CalmlflowError
        It cannot be reached.
    """
    if not uri.strip():
        raise InputError(f"data source is {uri!r}; expected {_KNOWN}")
    if re.fullmatch("sample(:.*)?", uri):
        return _open_sample(uri, seed)
    scheme = _scheme(uri)
    if scheme in (None, "file"):
        from calmlflow.jobs.stores.files import open_path

        return open_path(Path(uri) if scheme is None else _file_path(uri), create)
    if scheme not in _OPENERS:
        # The rest of the URI may hold a password.
        raise InputError(f"data source has the unknown scheme {scheme!r}; expected {_KNOWN}")
    module, opener = _OPENERS[scheme]
    opened: Callable[[str, bool], Store] = getattr(import_module(module), opener)
    return opened(uri, create)


def read_jobs(uri: str, seed: int = 0) -> Checked:
    """Read and check the job records of a store; see `open_store`.

    Raises
    ------
    InputError
        Also where no record is valid.
    """
    return check_records(read_table(uri, seed), hide_password(uri))


def read_table(uri: str, seed: int = 0) -> pd.DataFrame:
    """Read the job records of a store as they are, unchecked; see `open_store`."""
    with closing(open_store(uri, seed=seed)) as store:
        parts = list(store.read(JOBS))
    return pd.concat(parts) if parts else pd.DataFrame(columns=list(JOBS.columns))


def is_database(uri: str) -> bool:
    """Whether a URI is one of a database, which several may write to at once."""
    return _scheme(uri) in DATABASE_SCHEMES


# -- Kinds of URIs --------------------------------------------------------------------------------------------------


def _scheme(uri: str) -> str | None:
    # At least two letters, as in every scheme.
    found = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+):", uri)
    return found[1].lower() if found else None


def _file_path(uri: str) -> Path:
    host, slash, path = uri.partition(":")[2].removeprefix("//").partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"data source {uri!r} names no local file; expected file:///absolute/path")
    return Path("/" + unquote(path))


def _open_sample(uri: str, seed: int) -> Store:
    from calmlflow.jobs.sample import draw_sample
    from calmlflow.jobs.stores.read_only import ReadOnly, jobs_only

    if uri == "sample":
        return ReadOnly(uri, jobs_only(lambda: iter([draw_sample(seed=seed)])))
    size = uri.removeprefix("sample:")
    if not re.fullmatch("[0-9]{1,9}", size):
        raise InputError(f"sample size is {size!r}; expected sample:N with a whole number N, 1 or more")
    return ReadOnly(uri, jobs_only(lambda: iter([draw_sample(int(size), seed)])))
