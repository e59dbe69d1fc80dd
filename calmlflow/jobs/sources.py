"""Open a source of job records by one URI."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from calmlflow.hst.errors import InputError
from calmlflow.jobs.files import read_path
from calmlflow.jobs.records import Checked, check_records
from calmlflow.jobs.sample import draw_sample


def read_jobs(uri: str, seed: int = 0) -> Checked:
    """Read and check job records.

    Parameters
    ----------
    uri : str
        ``sample`` or ``sample:N`` (synthetic), a path or ``file://`` URI of a CSV file or of a training's folder. A
        folder that is itself named ``sample`` is read as ``./sample``.
    seed : int, default 0
        Of the synthetic sample.

    Raises
    ------
    InputError
        An unknown scheme, records that cannot be read, or none that is valid.
    """
    return check_records(read_table(uri, seed), uri)


def read_table(uri: str, seed: int = 0) -> pd.DataFrame:
    """Read the table behind a URI as it is, unchecked; see `read_jobs`."""
    if not uri.strip():
        raise InputError(f"data source is {uri!r}; expected {_known()}")
    if re.fullmatch("sample(:.*)?", uri):
        return _sample(uri, seed)
    # At least two letters, as in every scheme.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", uri)
    if not scheme:
        return read_path(Path(uri))
    if scheme[1].lower() not in OPENERS:
        # The rest of the URI may hold a password.
        raise InputError(f"data source has the unknown scheme {scheme[1]!r}; expected {_known()}")
    return OPENERS[scheme[1].lower()](uri)


def _known() -> str:
    return ", ".join(["sample", "sample:N", "a path", *(f"{scheme}://" for scheme in OPENERS)])


def _sample(uri: str, seed: int) -> pd.DataFrame:
    if uri == "sample":
        return draw_sample(seed=seed)
    size = uri.removeprefix("sample:")
    if not re.fullmatch("[0-9]{1,9}", size):
        raise InputError(f"sample size is {size!r}; expected sample:N with a whole number N, 1 or more")
    return draw_sample(int(size), seed)


def _open_file(uri: str) -> pd.DataFrame:
    host, slash, path = uri.partition(":")[2].removeprefix("//").partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"data source {uri!r} names no local file; expected file:///absolute/path")
    return read_path(Path("/" + unquote(path)))


OPENERS: dict[str, Callable[[str], pd.DataFrame]] = {"file": _open_file}
"""Scheme -> what reads the table behind a URI of that scheme."""
