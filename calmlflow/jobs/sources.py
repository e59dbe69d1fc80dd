"""Open a source of job records by one URI."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd

from calmlflow.hst.errors import InputError
from calmlflow.jobs.files import read_path
from calmlflow.jobs.records import Checked, check_records
from calmlflow.jobs.sample import DEFAULT_SIZE, draw_sample


def read_jobs(uri: str, seed: int = 0) -> Checked:
    """Read and check job records.

    Parameters
    ----------
    uri : str
        ``sample`` or ``sample:N`` (synthetic), a path or ``file://`` URI of a CSV file or of a training's folder.
    seed : int
        Of the synthetic sample.

    Raises
    ------
    InputError
        An unknown scheme, or records that cannot be read.
    """
    return check_records(read_table(uri, seed), uri)


def read_table(uri: str, seed: int = 0) -> pd.DataFrame:
    """Read the table behind a URI as it is; see `read_jobs`."""
    scheme, colon, rest = uri.partition(":")
    if scheme == "sample":
        return draw_sample(_size(rest) if colon else DEFAULT_SIZE, seed)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri):
        opener = OPENERS.get(scheme.lower())
        if opener is None:
            known = ", ".join(["sample", "sample:N", "a path", *(f"{name}://" for name in OPENERS)])
            raise InputError(f"data source {uri!r} has the unknown scheme {scheme!r}; expected one of: {known}")
        return opener(uri)
    return read_path(Path(uri))


def _open_file(uri: str) -> pd.DataFrame:
    address = urlsplit(uri)
    if address.netloc not in ("", "localhost") or not address.path:
        raise InputError(f"data source {uri!r} names no local file; expected file:///absolute/path")
    return read_path(Path(unquote(address.path)))


OPENERS: dict[str, Callable[[str], pd.DataFrame]] = {"file": _open_file}
"""Scheme -> what reads the table behind a URI of that scheme."""


def _size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise InputError(f"sample size is {text!r}; expected sample:N with a whole number N, 1 or more")
    return int(text)
