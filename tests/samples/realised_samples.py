"""A year of sample jobs with their predictions, some of them killed."""

import numpy as np
import pandas as pd

from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.sample import draw_sample
from calmlflow.results.report.realised import RealisedContent, realised_runs
from tests.samples.prediction_samples import predicted, recorded

JANUARY_S = 1_767_225_600  # 2026-01-01, UTC


def killed(**cells: object) -> dict:
    return {"ipst": "j8c601020", "timestamp": JANUARY_S, "kind": "time", "wallclock": 100.0, **cells}


def killed_table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["ipst", "timestamp", "kind", "wallclock"])


def sampled_realised(n=2000, seed=0) -> RealisedContent:
    """About a tenth of the bins and a hundredth of the kill times are wrong; one job in a hundred is killed only."""
    draw = np.random.default_rng(seed)
    jobs = draw_sample(n).drop_duplicates("ipst")
    jobs = jobs.assign(timestamp=JANUARY_S + draw.integers(0, 360 * 86_400, len(jobs)))
    answers, kills = [], []
    for _, job in jobs.iterrows():
        off = int(np.clip(job["mem_bin"] + draw.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1]), 0, len(LADDER) - 1))
        short = draw.random() < 0.01
        answers.append(predicted(job, bin_pred=off, kill_time=int(job["wallclock"] * (0.8 if short else 3)) + 1))
        if draw.random() < 0.02:
            kind = str(draw.choice(["time", "memory", "machine", "failed"]))
            kills.append(killed(ipst=job["ipst"], timestamp=job["timestamp"], kind=kind, wallclock=job["wallclock"]))
    only = {row["ipst"] for row in kills[::2]}
    finished = jobs[~jobs["ipst"].isin(only)]
    runs, left_out = realised_runs(finished, killed_table(*kills), recorded(*answers).predictions)
    return RealisedContent("sample", "2026-12-31 00:00 UTC", runs, len(finished) + len(kills) + 40, left_out)
