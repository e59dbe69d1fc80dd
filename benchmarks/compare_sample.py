"""Compare the synthetic sample with real jobs: rows, programmes, floors and spreads."""

from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from calmlflow.console import script
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.results.floors import classification_floor, regression_floor

SEEDS = range(10)


def figures_of(jobs: pd.DataFrame) -> dict[str, float]:
    """Title -> figure of a table of job records."""
    row = [jobs[name] for name in FEATURES]
    programme, visit = jobs["ipst"].str[:4], jobs["ipst"].str[:6]
    rows = jobs.groupby(row).size()
    by_programme = jobs.groupby([programme, *row])
    floor = classification_floor(jobs[list(FEATURES)], jobs["mem_bin"], jobs["wallclock"])
    best = by_programme["mem_bin"].agg(lambda bins: bins.value_counts().iloc[0])
    figures = {
        "jobs": len(jobs),
        "distinct rows": len(rows),
        "rows of one job": int((rows == 1).sum()),
        "share of the ten largest rows": rows.nlargest(10).sum() / len(jobs),
        "programmes": programme.nunique(),
        "visits": visit.nunique(),
        "jobs per programme": len(jobs) / programme.nunique(),
        "jobs per visit": len(jobs) / visit.nunique(),
        "jobs of the largest programme": jobs.groupby(programme).size().max(),
        "programme-row groups": by_programme.ngroups,
        **{f"jobs of bin {name}": int((jobs["mem_bin"] == number).sum()) for number, name in enumerate(BIN_NAMES)},
        "floor of accuracy": floor["accuracy"],
        "the same, programme known": best.sum() / len(jobs),
        "floor of excess cost": floor["excess_cost"],
    }
    for target in ("memory", "wallclock"):
        log = np.log(jobs[target])
        floor = regression_floor(jobs[list(FEATURES)], jobs[target])
        within = (log - log.groupby([programme, *row]).transform("median")).abs().mean()
        if target == "wallclock":
            figures["floor of wallclock RMSE (unbiased), s"] = floor["rmse_unbiased"]
        figures |= {
            f"{target} log MAE within rows": floor["log_mae"],
            f"{target} log MAE within programme and row": within,
        }
    return figures


def show(columns: dict[str, dict[str, float]]) -> None:
    """Print figures side by side; a title that a column lacks is an error."""
    table = Table("figure", *columns)
    for title in next(iter(columns.values())):
        values = [column[title] for column in columns.values()]
        table.add_row(title, *(f"{value:,.4f}" if value < 10 else f"{value:,.0f}" for value in values))
    Console(width=120).print(table)


def main(data: Annotated[str, typer.Option()]) -> None:
    """Mean of ten samples of as many jobs, beside the jobs of a file."""
    real = read_jobs(data).valid
    drawn = pd.DataFrame([figures_of(draw_sample(len(real), seed)) for seed in SEEDS])
    show(
        {
            "real jobs": figures_of(real),
            "sample, mean of ten": drawn.mean().to_dict(),
            "least": drawn.min().to_dict(),
            "most": drawn.max().to_dict(),
        }
    )


if __name__ == "__main__":
    script(main)
