"""The synthetic sample against the statistics that it is drawn from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calmlflow.jobs
from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES, job_features, parse_control
from calmlflow.jobs.records import COLUMNS, SUPERSEDED, check_records
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.open import read_jobs

KEYS = ["instr", "detector", "dtype", "drizcorr", "pctecorr", "subarray"]
ROW = list(FEATURES)
GROUP = ["programme", *FEATURES]
# As many jobs as the figures were computed from.
N = 44_916
START, DAYS = 1_609_459_200, 120


@pytest.fixture(scope="module")
def regimes() -> pd.DataFrame:
    return pd.read_csv(Path(calmlflow.jobs.__file__).parent / "regimes.csv").set_index(KEYS)


def named(sample: pd.DataFrame) -> pd.DataFrame:
    """The sample with programme, visit, collection and logarithms."""
    collection = np.searchsorted([0.517, 0.824], (sample["timestamp"] - START) / (DAYS * 86_400))
    return sample.assign(
        programme=sample["ipst"].str[:4],
        visit=sample["ipst"].str[:6],
        collection=collection,
        log_memory=np.log(sample["memory"]),
        log_wallclock=np.log(sample["wallclock"]),
    )


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return named(draw_sample(N))


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    return named(draw_sample(10 * N, 1))


@pytest.fixture(scope="module")
def joined(sample, regimes) -> pd.DataFrame:
    """The sample, and beside each job its regime's figures."""
    return sample.join(regimes, on=KEYS)


def spread_within(jobs: pd.DataFrame, groups: list[str], column: str) -> float:
    """Standard deviation within groups, without bias."""
    return float(
        np.sqrt(
            jobs.groupby(groups)[column].var().mul(jobs.groupby(groups).size() - 1).sum()
            / (len(jobs) - jobs.groupby(groups).ngroups)
        )
    )


def test_the_same_size_and_seed_give_the_same_records():
    pd.testing.assert_frame_equal(draw_sample(50, 3), draw_sample(50, 3))
    assert not draw_sample(50, 4)["memory"].equals(draw_sample(50, 3)["memory"])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(0, 2**63), st.sampled_from([0, 0.02, 0.5, 1]))
def test_any_size_and_seed(n, seed, reruns):
    sample = draw_sample(n, seed, reruns)
    assert tuple(sample.columns) == COLUMNS
    assert sample["timestamp"].between(START, START + DAYS * 86_400).all()
    checked = check_records(sample, "sample")
    pd.testing.assert_frame_equal(checked.valid, draw_sample(n, seed))
    assert len(checked.valid) == n
    assert checked.reasons() == ({SUPERSEDED: round(reruns * n)} if round(reruns * n) else {})
    assert np.bincount(checked.valid["mem_bin"], minlength=4).min() >= min(5, n // 10)


def test_the_mix_of_bins_is_the_archives(sample):
    """35,394, 9,352, 136 and 34 of 44,916 real jobs."""
    counts = np.bincount(sample["mem_bin"], minlength=4)
    assert counts[0] == pytest.approx(35_394, abs=0.04 * N)
    assert counts[1] == pytest.approx(9_352, abs=0.04 * N)
    assert 1 / 4 < counts[2] / 136 < 4
    assert 1 / 6 < counts[3] / 34 < 6


def test_every_regime_has_its_share(sample, regimes):
    counts = sample.groupby(KEYS).size().reindex(regimes.index)
    assert len(sample.groupby(KEYS)) == 36
    assert counts.notna().all()
    share = regimes["share"] / regimes["share"].sum()
    assert ((counts - N * share).abs() < 5 * np.sqrt(N * share * (1 - share))).all()


def test_a_regime_has_as_many_programmes_and_visits_as_the_archive(sample, regimes):
    found = sample.groupby(KEYS)
    jobs = found.size()
    large = jobs[jobs > 100].index
    programmes = found["programme"].nunique().loc[large]
    assert programmes.tolist() == np.ceil(jobs.loc[large] / regimes.loc[large, "jobs_per_programme"]).tolist()
    per_visit = jobs.loc[large] / sample.drop_duplicates([*KEYS, "visit"]).groupby(KEYS).size().loc[large]
    np.testing.assert_allclose(per_visit, regimes.loc[large, "jobs_per_visit"], rtol=0.3)


def test_programmes_and_visits_are_uneven(sample):
    for name in ("programme", "visit"):
        sizes = sample.groupby(name).size()
        assert sizes.median() < 0.6 * sizes.mean() or name == "visit"
        assert sizes.max() > 10 * sizes.mean()
        assert (sizes == 1).mean() > 0.1
    assert sample.groupby("visit")["programme"].nunique().max() == 1


def test_a_regime_has_as_many_rows_as_the_archive_and_few_of_them_make_up_most(sample, regimes):
    rows = sample.groupby(ROW).size()
    found = rows.groupby(KEYS).size().reindex(regimes.index)
    assert (found <= regimes["distinct_rows"] + 1).all()
    assert found.sum() == pytest.approx(regimes["distinct_rows"].sum(), rel=0.1)
    # 54.7 % of the real jobs share ten rows, and 324 of 818 rows have a single job.
    assert rows.nlargest(10).sum() / N == pytest.approx(0.547, rel=0.2)
    assert (rows == 1).sum() == pytest.approx(324, rel=0.2)


def test_jobs_of_a_programme_share_few_rows(sample):
    assert len(sample.drop_duplicates([*KEYS, *GROUP])) < 2 * len(sample.drop_duplicates([*KEYS, "programme"]))
    assert len(sample.drop_duplicates(["visit", *FEATURES])) < 1.1 * sample["visit"].nunique()


def test_rows_and_programmes_grow_slower_than_the_jobs(sample, many):
    rows = len(many.drop_duplicates(ROW)) / len(sample.drop_duplicates(ROW))
    assert rows == pytest.approx(10**0.6, rel=0.1)
    assert many["ipst"].is_unique


def test_files_megabytes_and_crsplit_follow_the_figures(joined):
    large = joined[joined.groupby(KEYS)["ipst"].transform("size") > 300]
    for _, jobs in large.groupby(KEYS):
        figures = jobs.iloc[0]
        heaviest = jobs.groupby(ROW).size().max() / len(jobs)
        for value in (0, 1, 2):
            share = figures[f"crsplit_{value}"]
            assert abs((jobs["crsplit"] == value).mean() - share) <= max(heaviest, 0.05)
            assert share > 0 or not (jobs["crsplit"] == value).any()
        assert jobs["n_files"].max() <= figures["n_files_max"]
        assert jobs["n_files"].min() >= figures["n_files_p5"]
        assert jobs["n_files"].median() == pytest.approx(figures["n_files_p50"], abs=1)
    # total_mb is whole, so a size per file is known to half a megabyte over the number of files.
    low, high = (large["n_files"] * large[f"mb_per_file_p{percent}"] for percent in (5, 95))
    assert large["total_mb"].between(low - 0.51, high + 0.51).mean() > 0.9


@pytest.mark.parametrize("target", ["memory", "wallclock"])
def test_targets_lie_around_the_fits(many, regimes, target):
    jobs = many.join(regimes, on=KEYS)
    fit = jobs[f"log_{target}_intercept"] + jobs[f"log_{target}_slope"] * np.log1p(jobs["total_mb"])
    jobs = jobs.assign(z=(jobs[f"log_{target}"] - fit) / jobs[f"log_{target}_sd"])
    # Rounding to seconds and the bounds move regimes of short jobs and of small memory.
    low = {"memory": np.log(0.2), "wallclock": np.log(20)}[target]
    sound = ((fit - low) / jobs[f"log_{target}_sd"] > 3).groupby([jobs[key] for key in KEYS]).transform("all")
    tested = 0
    for _, group in jobs[sound].groupby(KEYS):
        # Jobs of a row and of a programme are not independent.
        shares = [group.groupby(by).size() / len(group) for by in ("programme", ROW)]
        tested += len(group)
        assert abs(group["z"].mean()) < 4 * np.sqrt(sum((share**2).sum() for share in shares))
    assert tested > 0.5 * len(many)


@pytest.mark.parametrize("target", ["memory", "wallclock"])
def test_jobs_of_a_row_differ_by_programme_and_by_job(many, regimes, target):
    jobs = many.join(regimes, on=KEYS)
    within = np.sqrt((jobs[f"log_{target}_sd_within"] ** 2).mean())
    programme = np.sqrt((jobs[f"log_{target}_sd_programme"] ** 2).mean())
    # Outliers come by visit, and many a programme has one visit in a row.
    rel = 0.25 if target == "memory" else 0.1
    assert spread_within(many, [*GROUP, "collection"], f"log_{target}") == pytest.approx(within, rel=rel)
    assert spread_within(many, ROW, f"log_{target}") == pytest.approx(np.hypot(within, programme), rel=0.2)


def test_memory_has_a_tight_core_and_rare_outliers(many, regimes):
    jobs = many.join(regimes, on=KEYS)
    away = (jobs["log_memory"] - jobs.groupby(GROUP)["log_memory"].transform("median")).abs()
    for keys, group in away.groupby([jobs[key] for key in KEYS]):
        figures = regimes.loc[keys]
        if len(group) > 5_000 and figures["memory_outlier_share"] < 0.02:
            assert group.quantile(0.9) == pytest.approx(figures["log_memory_abs_p90_within"], rel=0.25)
    assert (away > 0.25).mean() == pytest.approx(jobs["memory_outlier_share"].mean(), rel=0.25)


def test_few_programmes_differ_in_memory_and_by_much(many):
    """In this regime the spread between programmes is 0.1008; of such, a share of (3 x 0.1008)^3 differs."""
    jobs = many[(many[KEYS] == [1, 0, 0, 0, 0, 1]).all(axis=1)]
    groups = jobs.groupby(GROUP)["log_memory"].median()
    away = (groups - groups.groupby(ROW).transform("median")).abs()
    assert (away > 0.25).mean() == pytest.approx(0.3024**3, abs=0.015)
    assert away.between(0.1, 0.25).mean() < 0.005


def test_programmes_that_need_more_memory_run_longer(many):
    jobs = many[(many[KEYS] == [3, 1, 0, 1, 1, 0]).all(axis=1) & (many["collection"] == 0)]
    rest = jobs[["log_memory", "log_wallclock"]] - jobs.groupby(ROW)[["log_memory", "log_wallclock"]].transform("mean")
    means = rest.groupby([jobs[name] for name in GROUP]).mean()
    # 0.2 between normal variables, less what the sign alone keeps of one and what single jobs add to the other.
    assert 0.05 < np.corrcoef(means.T)[0, 1] < 0.2


def test_wallclocks_of_later_collections_are_longer(many):
    parts = many.groupby([*ROW, "collection"]).agg(mean=("log_wallclock", "mean"), jobs=("programme", "nunique"))
    means = parts["mean"].where(parts["jobs"] >= 10).unstack("collection")
    for later, mean, sd in ((1, np.log(1.17), 0.29), (2, np.log(1.02), 0.10)):
        shift = (means[later] - means[later - 1]).dropna()
        assert len(shift) > 50
        assert shift.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(len(shift)))
        assert shift.std() == pytest.approx(sd, rel=0.3, abs=0.03)


def test_a_third_to_a_half_of_a_new_collection_belongs_to_known_programmes(sample):
    """32 % and 55 % in the archive."""
    for later, share in ((1, 0.32), (2, 0.55)):
        known = sample["programme"][sample["collection"] < later].unique()
        found = sample[sample["collection"] == later]["programme"].isin(known).mean()
        assert found == pytest.approx(share, abs=0.12)


def test_an_earlier_run_resembles_the_last_one():
    n = 4 * N
    both = named(draw_sample(n, 2, reruns=1.0))
    last, older = both[:n].set_index("ipst"), both[n:].set_index("ipst").loc[both["ipst"][:n]]
    assert (older["timestamp"] < last["timestamp"]).all()
    pd.testing.assert_frame_equal(older[ROW], last[ROW])
    first = ((last["collection"] == 0) & (older["collection"] == 0)).to_numpy()
    for target, correlation in (("log_memory", 0.98), ("log_wallclock", 0.39)):
        rests = [
            runs.loc[first, target] - runs[first].groupby(GROUP)[target].transform("mean") for runs in (last, older)
        ]
        assert np.corrcoef(*rests)[0, 1] == pytest.approx(correlation, abs=0.02)


def test_memory_and_wallclock_stay_in_bounds(sample):
    assert sample["memory"].between(0.2, 57).all()
    assert sample["wallclock"].between(5, 172_800).all()
    assert (sample["wallclock"] % 1 == 0).all()
    # Mirrored, not cut: no heap of jobs at a bound.
    assert (sample["memory"] == 0.2).sum() < 3
    assert (sample["wallclock"] == 5).sum() < (sample["wallclock"] == 10).sum()


def test_the_example_of_the_guides_is_a_job_of_the_sample():
    control = Path(__file__).parents[2] / "examples" / "i1rmre01q_MemModelFeatures.txt"
    job = read_jobs("sample").valid.set_index("ipst").loc["i1rmre01q", ROW]
    assert tuple(job) == job_features("i1rmre01q", parse_control(control.read_bytes()))


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
