"""Job records in files: a CSV, or the folder that a training left behind."""

from pathlib import Path

import pandas as pd

from calmlflow.hst.errors import InputError


def read_path(path: Path) -> pd.DataFrame:
    """Read the table of a CSV file, or of a folder.

    A folder holds it as ``data/latest.csv`` (a training's), as ``latest.csv``, or as its only CSV file.

    Raises
    ------
    InputError
        Nothing there, more than one candidate, or a file that is no table.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a CSV file of job records, or a training's folder")
    return _read_csv(_table_of(path) if path.is_dir() else path)


def _table_of(folder: Path) -> Path:
    for candidate in (folder / "data" / "latest.csv", folder / "latest.csv"):
        if candidate.is_file():
            return candidate
    tables = sorted(folder.glob("*.csv"))
    if len(tables) == 1:
        return tables[0]
    found = f"it holds {len(tables)} CSV files" if tables else "it holds none"
    raise InputError(f"folder {folder} is no data folder: expected data/latest.csv or a single CSV file, and {found}")


def _read_csv(path: Path) -> pd.DataFrame:
    # Names of datasets stay text, whatever they look like.
    names = {"ipst": "str", "ipppssoot": "str"}
    try:
        return pd.read_csv(path, dtype=names, low_memory=False)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a CSV file") from None
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path} is no CSV table ({reason}); expected a header line and comma-separated records"
        ) from None
