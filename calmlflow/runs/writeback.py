"""What a training found out about jobs, back into the store that they came from."""

from contextlib import closing
from pathlib import Path

import pandas as pd

from calmlflow.jobs.stores.base import JOBS
from calmlflow.jobs.stores.open import open_store
from calmlflow.jobs.upsert import write_back
from calmlflow.settings import hide_password


def check_writable(data: str) -> None:
    """Raise a CalmlflowError where jobs come from what cannot be written, before the work of a training goes into it.

    The first record is put back as it is.
    """
    with closing(open_store(data)) as store, store.change():
        first = next(store.read(JOBS, ["ipst"]), None)
        if first is not None:
            store.put(JOBS, store.get(JOBS, first["ipst"].tolist()[:1]))


def write_predictions(data: str, table: pd.DataFrame, tree: Path) -> str:
    """Write predictions and wallclock statistics into a store, in one change.

    Parameters
    ----------
    data : str
        URI of the store.
    table : DataFrame of n jobs
        See `calmlflow.results.table.training_table`.
    tree : Path
        The training's folder, ``{date}-{epoch}``; its epoch becomes ``trained_at``.

    Returns
    -------
    str
        A sentence for people.
    """
    with closing(open_store(data)) as store:
        written, left = write_back(store, table, int(tree.name.rpartition("-")[2]))
    others = f"; {left:,} left alone, which are gone or others by now" if left else ""
    return f"{written:,} records of {hide_password(data)}{others}"
