"""Draw synthetic job records from the statistics of 36 regimes of real HST jobs (``regimes.csv``)."""

from importlib import resources
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.jobs.records import COLUMNS, MIN_MEMORY_GB

_MAX_JOBS = 5_000_000
_MAX_MEMORY_GB = 57.0
_MIN_WALLCLOCK_S, _MAX_WALLCLOCK_S = 5, 172_800
# Number of jobs behind the regimes' figures. The rows of an archive grow with this power of its jobs.
_REAL_JOBS, _ROWS_POWER = 44_916, 0.6
# A regime's row of rank k, from 1, is chosen in proportion to k to this power; a visit chooses anew at least so often.
_RANK_POWER, _NEW_ROW = -1.5, 0.1
# Numbers of programmes and of visits that names have room for.
_PROGRAMMES, _VISITS = 36**3, 36**2
# Standard deviation of ln(expected jobs of a programme). An instrument's programmes to one that a regime chooses.
_SPREAD, _CHOICE = 1.5, 1.5
# Of what a programme has of its own, the share that its rows have in common; correlation of memory and wallclock.
_COMMON, _CORRELATION = 0.35, 0.2
# From this standard deviation of ln(memory) between programmes on, all of them differ from the mean.
_ALL_DIFFER = 1 / 3
# A job of an outlying visit is farther than this in ln(memory) from the median of its programme and row. Share of a
# visit in the variance of ln(wallclock) within programme and row.
_OUTLIER, _VISIT_SHARE = 0.25, 0.14
# The jobs end within 120 days from 1 January 2021; a programme lasts a quarter of them.
_FIRST_TIMESTAMP, _SECONDS, _LASTS = 1_609_459_200, 120 * 86_400, 0.25
# Shares of three collections, and what each adds to ln(wallclock) of the one before: mean, deviation between rows.
_COLLECTIONS = np.array([0.517, 0.307, 0.176])
_CAMPAIGNS = ((0, 0), (np.log(1.17), 0.29), (np.log(1.02), 0.10))
# Correlation of what is left of memory and of wallclock, given programme and row, in a dataset's two runs.
_RERUN = np.array([[0.98], [0.39]])
_SPARE = 50_000
# Draws without a job of a rung, after which no job of the archive is taken to need it.
_TRIES = 50
_DIGITS = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))


def draw_sample(n: int = 20_000, seed: int = 0, reruns: float = 0.0) -> pd.DataFrame:
    """Draw synthetic job records with the archive's mix of jobs.

    Programmes, visits and rows are as many and as uneven as in an archive of n jobs. Memory and wallclock follow the
    regime's log-linear fits, plus what row, programme, campaign, visit and job have of their own. At least
    ``min(5, n // 10)`` jobs need each bin: where the draw gives fewer, more jobs are drawn, and the first ones that
    need such a bin take the places of jobs of the bin that most jobs need.

    Parameters
    ----------
    n : int, default 20,000
        Number of datasets, 1 to 5,000,000.
    seed : int, default 0
    reruns : float, default 0
        Share of the datasets, 0 to 1, that ran before: an older record of each stands after the n of the last runs,
        which do not depend on this share.

    Raises
    ------
    InputError
        ``n`` or ``seed`` is out of range.
    """
    if not 1 <= n <= _MAX_JOBS:
        raise InputError(f"a sample of {n} jobs was asked for; expected 1 to {_MAX_JOBS}")
    if seed < 0:
        raise InputError(f"seed of the sample is {seed}; expected 0 or more")
    rng = np.random.default_rng(seed)
    with (resources.files(__package__) / "regimes.csv").open(encoding="utf-8") as file:
        regimes = pd.read_csv(file)
    rows = _draw_rows(regimes, n, rng)
    jobs = _draw_jobs(regimes, rows, n, rng)
    at_least = min(5, n // 10)
    # Rungs that jobs of the archive need.
    needed, tries = np.arange(len(LADDER)), 0
    while (counts := np.bincount(jobs["mem_bin"], minlength=len(LADDER)))[needed].min() < at_least:
        rare = int(needed[counts[needed].argmin()])
        spare = _draw_jobs(regimes, rows, _SPARE, rng).query("mem_bin == @rare").head(at_least - counts[rare])
        tries = tries + 1 if spare.empty else 0
        if tries == _TRIES:
            needed, tries = needed[needed != rare], 0
        places = rng.choice(np.flatnonzero(jobs["mem_bin"] == counts.argmax()), len(spare), replace=False)
        jobs.loc[places] = spare.set_axis(places)
    names = _names(jobs)
    again = rng.choice(n, round(reruns * n), replace=False)
    older = jobs.iloc[again]
    older = older.assign(
        timestamp=rng.integers(_FIRST_TIMESTAMP, older["timestamp"]),
        memory_rest=older["older_memory_rest"],
        wallclock_rest=older["older_wallclock_rest"],
    )
    table = pd.concat([jobs, _run(older, rows)], ignore_index=True)
    return table.assign(ipst=np.concatenate([names, names[again]]))[list(COLUMNS)]


def _draw_rows(regimes: pd.DataFrame, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of features, their weights within the regime, and the logarithms that their jobs' targets lie around."""
    sizes = np.ceil(regimes["distinct_rows"].to_numpy() * (n / _REAL_JOBS) ** _ROWS_POWER).astype(int)
    number = np.repeat(np.arange(len(regimes)), sizes)
    rank = 1 + np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    weight = rank**_RANK_POWER / np.bincount(number, rank**_RANK_POWER)[number]
    regime = {str(name): values.to_numpy()[number] for name, values in regimes.items()}

    def positions(key: NDArray[np.float64]) -> NDArray[np.float64]:
        """Place of each row in a regime's distribution, by a key to sort them by."""
        order = np.lexsort((key, number))
        at = np.empty(len(rank))
        at[order] = np.cumsum(weight[order]) - number[order] - weight[order] / 2
        return at

    # The likeliest row stands about the middle; the rarer a row, the more unusual its number of files.
    at = positions((-1.0) ** rank * (rank - 1))
    n_files = _quantile(at, regime, "n_files")
    # Past the 95th percentile, a Pareto tail that reaches the regime's maximum once in all its real jobs.
    tail_jobs = 0.05 * _REAL_JOBS * regime["share"]
    steepness = np.log(regime["n_files_max"] / regime["n_files_p95"]) / np.log(tail_jobs)
    n_files *= (0.05 / np.minimum(1 - at, 0.05)) ** steepness
    n_files = np.minimum(n_files.round(), regime["n_files_max"]).astype(int)
    mb_per_file, at = (positions(np.where(rank == 1, 0.5, rng.random(len(rank)))) for _ in range(2))
    total_mb = (n_files * _quantile(mb_per_file, regime, "mb_per_file")).round()
    at *= regime["crsplit_0"] + regime["crsplit_1"] + regime["crsplit_2"]
    crsplit = (at >= regime["crsplit_0"]).astype(int) + (at >= regime["crsplit_0"] + regime["crsplit_1"])

    rows = pd.DataFrame({"regime": number, "n_files": n_files, "total_mb": total_mb, "crsplit": crsplit})
    # Of rows that came out equal, the first takes all the weight; the others are moved, and chosen once.
    equal = rows.groupby(list(rows.columns)).ngroup().to_numpy()
    rows["weight"] = np.where(rows.duplicated(), 0, np.bincount(equal, weight)[equal])
    features = ["regime", "n_files", "total_mb", "crsplit"]
    while rows.duplicated(features).any():
        rows["total_mb"] += rows.groupby(features).cumcount()

    normal = rng.normal(size=(5, len(rows)))
    for target, z in zip(("memory", "wallclock"), normal[:2], strict=True):
        total, programme, within = (regime[f"log_{target}_sd{part}"] for part in ("", "_programme", "_within"))
        own = np.sqrt(np.maximum(total**2 - programme**2 - within**2, 0)) * z
        own -= np.bincount(number, rows["weight"] * own)[number]
        fit = regime[f"log_{target}_intercept"] + regime[f"log_{target}_slope"] * np.log1p(rows["total_mb"])
        rows[f"log_{target}"] = fit + own
    shifts = np.cumsum([mean + sd * z for (mean, sd), z in zip(_CAMPAIGNS, normal[2:], strict=True)], axis=0)
    # The regime's fit is that of all collections, and its spread between programmes holds that between collections.
    shifts -= _COLLECTIONS @ shifts
    rows[["shift_0", "shift_1", "shift_2"]] = shifts.T
    spread = regime["log_wallclock_sd_programme"] ** 2
    rows["wallclock_sd"] = np.sqrt(np.maximum(spread - _COLLECTIONS @ shifts**2, spread / 4))
    return rows


def _quantile(at: NDArray[np.float64], regime: dict[str, NDArray], column: str) -> NDArray[np.float64]:
    """Quantiles, straight in log1p between three percentiles of a column, and flat outside them."""
    up = np.clip((at - 0.05) / 0.45, 0, 2)
    low, mid, high = (np.log1p(regime[f"{column}_p{percent}"]) for percent in (5, 50, 95))
    return np.expm1(np.where(up < 1, low + (mid - low) * up, mid + (high - mid) * (up - 1)))


def _draw_jobs(regimes: pd.DataFrame, rows: pd.DataFrame, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """All but the names of n jobs in random order, and what names and earlier runs are made of."""
    counts = rng.multinomial(n, regimes["share"] / regimes["share"].sum())
    wanted = np.ceil(counts / regimes["jobs_per_programme"]).astype(int)
    numbers = {
        instr: rng.choice(_PROGRAMMES, min(_PROGRAMMES, int(np.ceil(_CHOICE * programmes))), replace=False)
        for instr, programmes in wanted.groupby(regimes["instr"]).sum().items()
    }
    parts = []
    for number in np.flatnonzero(counts):
        regime = regimes.iloc[number]
        known = numbers[regime["instr"]]
        programmes = rng.choice(known, min(wanted[number], len(known)), replace=False)
        parts.append(_deal(regime, rows[rows["regime"] == number], programmes, counts[number], rng))
    jobs = pd.concat(parts, ignore_index=True).iloc[rng.permutation(n)].reset_index(drop=True)
    of_row = rows.iloc[jobs["row"]].reset_index(drop=True)
    jobs = pd.concat([jobs, of_row[["regime", "n_files", "total_mb", "crsplit"]]], axis=1)
    for name in ("drizcorr", "pctecorr", "subarray", "detector", "dtype", "instr"):
        jobs[name] = regimes[name].to_numpy()[jobs["regime"]]
    return _run(jobs, rows)


def _deal(
    regime: pd.Series, rows: pd.DataFrame, programmes: NDArray[np.int64], n: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Deal a regime's jobs to programmes, these to visits, and rows to programmes and to some of the visits."""
    weights = rng.lognormal(sigma=_SPREAD, size=len(programmes))
    sizes = 1 + np.sort(rng.multinomial(n - len(programmes), weights / weights.sum()))[::-1]
    first = np.cumsum(sizes) - sizes
    programme = np.repeat(np.arange(len(programmes)), sizes)
    # Each job but a programme's first begins a visit with the same probability.
    per_programme = regime["jobs_per_programme"]
    is_new_visit = rng.random(n) < (per_programme / regime["jobs_per_visit"] - 1) / (per_programme - 1)
    is_new_visit[first] = True
    visit = np.cumsum(is_new_visit) - 1
    of_visit = programme[is_new_visit]

    is_apart = rng.random(len(of_visit)) < np.clip(regime["distinct_rows"] / regime["programmes"] / 2, _NEW_ROW, 1)
    chosen = rng.choice(len(rows), len(programmes) + is_apart.sum(), p=rows["weight"])
    # The last to choose, small programmes and single visits, take each row once.
    chosen[-len(rows) :] = np.arange(min(len(rows), len(chosen)))
    row_of_visit = chosen[of_visit]
    row_of_visit[is_apart] = chosen[len(programmes) :]
    row = row_of_visit[visit]

    # Numbers of programmes rise with time.
    at = programmes[of_visit] / _PROGRAMMES + _LASTS * (rng.random(len(of_visit)) - 0.5)
    at = 1 - np.abs(1 - np.abs(at))
    first_number = rng.integers(_VISITS, size=len(programmes))

    _, group = np.unique(programme * len(rows) + row, return_inverse=True)
    own = np.sqrt(_COMMON) * rng.normal(size=(2, len(programmes)))[:, programme]
    own += np.sqrt(1 - _COMMON) * rng.normal(size=(2, group.max() + 1))[:, group]
    own[1] = _CORRELATION * own[0] + np.sqrt(1 - _CORRELATION**2) * own[1]
    # In memory few programmes differ from others, and by much: the fewer, the smaller the spread.
    sd = max(regime["log_memory_sd_programme"], 1e-4)
    share = min(1, (sd / _ALL_DIFFER) ** 3)
    differs = np.abs(own[0]) > -NormalDist().inv_cdf(share / 2)
    own[0] = np.where(differs, np.copysign(sd / np.sqrt(share), own[0]), 0)
    own[1] *= rows["wallclock_sd"].to_numpy()[row]

    rest = _draw_rest(regime, visit, rng)
    older_rest = _RERUN * rest + np.sqrt(1 - _RERUN**2) * _draw_rest(regime, visit, rng)
    return pd.DataFrame(
        {
            "row": rows.index[row],
            "programme": programmes[programme],
            "visit": (first_number[programme] + visit - visit[first][programme]) % _VISITS,
            "timestamp": _FIRST_TIMESTAMP + np.ceil(at * _SECONDS).astype(int)[visit],
            "log_memory": rows["log_memory"].to_numpy()[row] + own[0],
            "log_wallclock": rows["log_wallclock"].to_numpy()[row] + own[1],
        }
        | dict(zip(("memory_rest", "wallclock_rest"), rest, strict=True))
        | dict(zip(("older_memory_rest", "older_wallclock_rest"), older_rest, strict=True))
    )


def _draw_rest(regime: pd.Series, visit: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """What visits and jobs add to ln(memory), a tight core and rare outliers, and to ln(wallclock), shape (2, n)."""
    z, z_visit = rng.normal(size=(2, len(visit))), rng.normal(size=(2, visit[-1] + 1))
    share, core = regime["memory_outlier_share"], min(regime["log_memory_abs_p90_within"], _OUTLIER) / 1.645
    memory = core * z[0]
    if share:
        # An outlier is _OUTLIER plus an exponential, whose mean gives the variance of core and outliers together.
        square = (regime["log_memory_sd_within"] ** 2 - core**2) / share
        mean = (np.sqrt(max(8 * square - 4 * _OUTLIER**2, _OUTLIER**2)) - _OUTLIER) / 4
        far = np.copysign(_OUTLIER + rng.exponential(mean, len(z_visit[0])), z_visit[0])
        is_far = rng.random(len(far)) < share
        memory += np.where(is_far, far, 0)[visit]
    wallclock = np.sqrt(_VISIT_SHARE) * z_visit[1][visit] + np.sqrt(1 - _VISIT_SHARE) * z[1]
    return np.stack([memory, regime["log_wallclock_sd_within"] * wallclock])


def _run(jobs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add memory in GB, to the kilobyte, wallclock in whole seconds, and the memory bin."""
    after = (jobs["timestamp"] - _FIRST_TIMESTAMP) / _SECONDS
    collection = np.digitize(after, np.cumsum(_COLLECTIONS)[:-1])
    shift = rows[["shift_0", "shift_1", "shift_2"]].to_numpy()[jobs["row"], collection]
    memory = _fold(jobs["log_memory"] + jobs["memory_rest"], MIN_MEMORY_GB, _MAX_MEMORY_GB).round(6)
    wallclock = _fold(jobs["log_wallclock"] + jobs["wallclock_rest"] + shift, _MIN_WALLCLOCK_S, _MAX_WALLCLOCK_S)
    return jobs.assign(memory=memory, wallclock=wallclock.round(), mem_bin=needed_bin(memory))


def _fold(log: pd.Series, low: float, high: float) -> NDArray[np.float64]:
    """Amounts between two bounds: logarithms beyond one are mirrored at it, so that none heap up there."""
    log_low, log_high = np.log((low, high))
    up = log_low + np.abs(log.to_numpy() - log_low)
    return np.clip(np.exp(log_high - np.abs(log_high - up)), low, high)


def _names(jobs: pd.DataFrame) -> NDArray[np.str_]:
    """Unique ipppssoots: instrument's letter, programme, visit, exposure, then ``0`` for an association, else ``q``."""
    exposure = jobs.groupby(["instr", "programme", "visit"]).cumcount().to_numpy() + 1
    parts = [np.array(list(INSTRUMENTS))[jobs["instr"]]]
    for number, length in ((jobs["programme"], 3), (jobs["visit"], 2), (exposure, 2)):
        parts += [_DIGITS[number // len(_DIGITS) ** place % len(_DIGITS)] for place in reversed(range(length))]
    parts.append(np.where(jobs["dtype"] == 1, "0", "q"))
    return np.stack(parts, axis=1).reshape(-1).view("U9")
