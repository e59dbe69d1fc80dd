"""The synthetic sample against the statistics that it is drawn from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calmlflow.jobs
from calmlflow.errors import InputError
from calmlflow.jobs.records import COLUMNS, check_records
from calmlflow.jobs.sample import draw_sample

KEYS = ["instr", "detector", "dtype", "drizcorr", "pctecorr", "subarray"]
N = 20_000


@pytest.fixture(scope="module")
def regimes() -> pd.DataFrame:
    return pd.read_csv(Path(calmlflow.jobs.__file__).parent / "regimes.csv").set_index(KEYS)


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return draw_sample()


@pytest.fixture(scope="module")
def joined(sample, regimes) -> pd.DataFrame:
    """The sample, and beside each job its regime's figures."""
    return sample.join(regimes, on=KEYS)


def residual(joined: pd.DataFrame, target: str) -> pd.Series:
    """Standardised: normal with mean 0 and standard deviation 1 where no bound cuts it."""
    fit = joined[f"log_{target}_intercept"] + joined[f"log_{target}_slope"] * np.log(1 + joined["total_mb"])
    return (np.log(joined[target]) - fit) / joined[f"log_{target}_sd"]


def uncut(joined: pd.DataFrame) -> pd.DataFrame:
    """Jobs of large regimes, all of whose rows lie far from every bound, where rounding to seconds does no harm."""
    margins = []
    for target, low, high in (("memory", 0.2, 57), ("wallclock", 5, 172_800)):
        fit = joined[f"log_{target}_intercept"] + joined[f"log_{target}_slope"] * np.log(1 + joined["total_mb"])
        sd = joined[f"log_{target}_sd"]
        margins.append(((fit - np.log(low)) / sd > 4) & ((np.log(high) - fit) / sd > 4))
    slow = joined["wallclock"] > 20
    sound = (margins[0] & margins[1] & slow).groupby([joined[key] for key in KEYS]).transform("all")
    large = joined.groupby(KEYS)["ipst"].transform("size") > 300
    return joined[sound & large]


def test_the_same_size_and_seed_give_the_same_records():
    pd.testing.assert_frame_equal(draw_sample(50, 3), draw_sample(50, 3))
    assert not draw_sample(50, 4)["memory"].equals(draw_sample(50, 3)["memory"])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(0, 2**63))
def test_any_size_and_seed(n, seed):
    sample = draw_sample(n, seed)
    assert tuple(sample.columns) == COLUMNS
    assert sample["timestamp"].between(1_609_459_200, 1_619_827_200).all()
    assert len(sample) == n
    assert check_records(sample, "sample").quarantine.empty
    assert np.bincount(sample["mem_bin"], minlength=4).min() >= min(5, n // 10)


def test_the_mix_of_bins_is_the_archives(sample):
    """35,394, 9,352, 136 and 34 of 44,916 real jobs; the regimes' fits are log-normal, which the archive is not."""
    shares = np.bincount(sample["mem_bin"], minlength=4) / N
    assert shares[0] == pytest.approx(35_394 / 44_916, abs=0.04)
    assert shares[1] == pytest.approx(9_352 / 44_916, abs=0.04)
    assert 0.5 < shares[2] / (136 / 44_916) < 2
    assert 0.3 < shares[3] / (34 / 44_916) < 3


def test_every_regime_has_its_share(sample, regimes):
    counts = sample.groupby(KEYS).size().reindex(regimes.index)
    assert len(sample.groupby(KEYS)) == 36
    assert counts.notna().all()
    share = regimes["share"] / regimes["share"].sum()
    assert ((counts - N * share).abs() < 5 * np.sqrt(N * share * (1 - share))).all()


def test_files_megabytes_and_crsplit_follow_the_figures(joined):
    large = joined[joined.groupby(KEYS)["ipst"].transform("size") > 300]
    for _, jobs in large.groupby(KEYS):
        figures = jobs.iloc[0]
        for value in (0, 1, 2):
            share = figures[f"crsplit_{value}"]
            # The figures are rounded to three places.
            allowed = 5 * np.sqrt(share * (1 - share) / len(jobs)) + 0.002
            assert abs((jobs["crsplit"] == value).mean() - share) <= allowed
        assert jobs["n_files"].max() <= figures["n_files_max"]
        assert jobs["n_files"].min() >= figures["n_files_p5"]
        assert jobs["n_files"].median() == pytest.approx(figures["n_files_p50"], abs=1)
        assert jobs["n_files"].quantile(0.95) == pytest.approx(figures["n_files_p95"], rel=0.15, abs=1)
        # total_mb is whole, so a size per file is known to half a megabyte over the number of files.
        low, mid, high = (jobs["n_files"] * figures[f"mb_per_file_p{percent}"] for percent in (5, 50, 95))
        assert jobs["total_mb"].between(low - 0.51, high + 0.51).all()
        assert max((jobs["total_mb"] < mid - 0.51).mean(), (jobs["total_mb"] > mid + 0.51).mean()) < 0.5


@pytest.mark.parametrize("target", ["memory", "wallclock"])
def test_targets_follow_the_fits(joined, target):
    jobs = uncut(joined)
    assert len(jobs) > 2_000
    for _, group in jobs.groupby(KEYS):
        z = residual(group, target)
        assert abs(z.mean()) < 5 / np.sqrt(len(z))
        assert z.std() == pytest.approx(1, abs=5 / np.sqrt(2 * len(z)))


def test_jobs_that_need_more_memory_run_longer(joined):
    jobs = uncut(joined)
    correlation = np.corrcoef(residual(jobs, "memory"), residual(jobs, "wallclock"))[0, 1]
    assert correlation == pytest.approx(0.15, abs=4 / np.sqrt(len(jobs)))


def test_memory_and_wallclock_stay_in_bounds(sample):
    assert sample["memory"].between(0.2, 57).all()
    assert sample["wallclock"].between(5, 172_800).all()
    assert (sample["wallclock"] % 1 == 0).all()
    # Redrawn, not cut: no heap of jobs at a bound.
    assert (sample["memory"] == 0.2).sum() < 3
    assert (sample["wallclock"] == 5).sum() < (sample["wallclock"] == 10).sum()


@pytest.mark.parametrize(
    ("n", "seed", "message"),
    [
        (0, 0, "a sample of 0 jobs was asked for; expected 1 to 5000000"),
        (5_000_001, 0, "a sample of 5000001 jobs was asked for"),
        (10, -1, "seed of the sample is -1; expected 0 or more"),
    ],
)
def test_a_size_or_seed_out_of_range(n, seed, message):
    with pytest.raises(InputError, match=message):
        draw_sample(n, seed)
