"""The table of the three splits."""

import numpy as np

# Benchmarks are no part of the installed package.
from benchmarks.splits import SHOWN, score_cells
from calmlflow.runs.data import load_training_data


def test_a_cell_holds_score_interval_and_hits_of_the_test_jobs():
    data = load_training_data("sample:400", 0, 0.2, "job")
    jobs = data.jobs.iloc[data.test]
    bins = jobs["mem_bin"].to_numpy()
    right = {
        "probabilities": np.eye(4)[bins],
        "bin_pred": bins,
        "mem_pred": jobs["memory"].to_numpy(),
        "wall_pred": jobs["wallclock"].to_numpy() * 2,
        "kill_time": jobs["wallclock"].to_numpy() * 3,
    }
    cells = score_cells(data, right)
    assert len(cells) == sum(map(len, SHOWN.values()))
    assert cells["bin accuracy"].startswith("100.00% (")
    count = int(np.sum(bins == 2))
    (recall,) = (cell for name, cell in cells.items() if "recall 16g" in name)
    assert f"; {count} of {count} in " in recall if count else recall == "-"
    (reserved,) = (cell for name, cell in cells.items() if "reserved" in name)
    assert reserved.startswith("3.00 x (")
