"""Draw synthetic job records from the statistics of 36 regimes of real HST jobs (``regimes.csv``)."""

from importlib import resources

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
# Number of jobs behind the regimes' figures.
_REAL_JOBS = 44_916
# Of the residuals of ln(memory) and ln(wallclock), over all real jobs with equal features.
_CORRELATION = 0.15
# An instrument has few readout modes, so a regime has this many sizes per file.
_SIZES = 7
# The jobs end within 120 days from 1 January 2021.
_FIRST_TIMESTAMP, _DAYS = 1_609_459_200, 120
_SPARE = 50_000
_DIGITS = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))


def draw_sample(n: int = 20_000, seed: int = 0) -> pd.DataFrame:
    """Draw synthetic job records with the archive's mix of jobs.

    A job's regime follows the regimes' shares; its files and megabytes follow the regime's percentiles; its memory and
    wallclock follow the regime's log-linear fits with log-normal residuals, redrawn where they leave 0.2-57 GB or
    5-172,800 s. At least ``min(5, n // 10)`` jobs need each bin: where the draw gives fewer, more jobs are drawn, and
    the first ones that need such a bin take the places of jobs of the bin that most jobs need.
    """
    if not 1 <= n <= _MAX_JOBS:
        raise InputError(f"a sample of {n} jobs was asked for; expected 1 to {_MAX_JOBS}")
    if seed < 0:
        raise InputError(f"seed of the sample is {seed}; expected 0 or more")
    rng = np.random.default_rng(seed)
    jobs = _draw_jobs(n, rng)
    at_least = min(5, n // 10)
    while (counts := np.bincount(jobs["mem_bin"], minlength=len(LADDER))).min() < at_least:
        rare = int(counts.argmin())
        spare = _draw_jobs(_SPARE, rng).query("mem_bin == @rare").head(at_least - counts[rare])
        places = rng.choice(np.flatnonzero(jobs["mem_bin"] == counts.argmax()), len(spare), replace=False)
        jobs.loc[places] = spare.set_axis(places)
    jobs["ipst"] = _names(jobs["instr"].to_numpy(), jobs["dtype"].to_numpy(), rng)
    jobs["timestamp"] = _FIRST_TIMESTAMP + rng.integers(0, _DAYS * 86_400, n)
    return jobs[list(COLUMNS)]


def _draw_jobs(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Features and targets of n jobs."""
    with (resources.files(__package__) / "regimes.csv").open(encoding="utf-8") as file:
        regimes = pd.read_csv(file)
    chosen = rng.choice(len(regimes), n, p=regimes["share"] / regimes["share"].sum())
    job = {str(name): values.to_numpy()[chosen] for name, values in regimes.items()}

    at = rng.random(n)
    n_files = _quantile(at, job, "n_files")
    # Past the 95th percentile, a Pareto tail that reaches the regime's maximum once in all its real jobs.
    tail_jobs = 0.05 * _REAL_JOBS * job["share"]
    steepness = np.log(job["n_files_max"] / job["n_files_p95"]) / np.log(tail_jobs)
    n_files *= (0.05 / np.minimum(1 - at, 0.05)) ** steepness
    n_files = np.minimum(n_files.round(), job["n_files_max"])

    at = (rng.integers(0, _SIZES, n) + 0.5) / _SIZES
    mb_per_file = _quantile(at, job, "mb_per_file")
    total_mb = (n_files * mb_per_file).round()
    at = rng.random(n) * (job["crsplit_0"] + job["crsplit_1"] + job["crsplit_2"])
    crsplit = (at >= job["crsplit_0"]).astype(int) + (at >= job["crsplit_0"] + job["crsplit_1"])

    memory_gb, wallclock_s = _draw_targets(job, np.log1p(total_mb), rng)
    return pd.DataFrame(
        {"n_files": n_files.astype(int), "total_mb": total_mb, "crsplit": crsplit}
        | {key: job[key] for key in ("drizcorr", "pctecorr", "subarray", "detector", "dtype", "instr")}
        | {"wallclock": wallclock_s, "memory": memory_gb, "mem_bin": needed_bin(memory_gb)}
    )


def _quantile(at: NDArray[np.float64], job: dict[str, NDArray], column: str) -> NDArray[np.float64]:
    """Quantiles, straight in log1p between three percentiles of a column, and flat outside them."""
    up = np.clip((at - 0.05) / 0.45, 0, 2)
    low, mid, high = (np.log1p(job[f"{column}_p{percent}"]) for percent in (5, 50, 95))
    return np.expm1(np.where(up < 1, low + (mid - low) * up, mid + (high - mid) * (up - 1)))


def _draw_targets(
    job: dict[str, NDArray], log_mb: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Memory in GB, to the kilobyte, and wallclock in whole seconds."""
    n = len(log_mb)
    memory_gb, wallclock_s = np.zeros(n), np.zeros(n)
    redraw = np.arange(n)
    while redraw.size:
        residual = rng.normal(size=(2, redraw.size))
        residual[1] = _CORRELATION * residual[0] + np.sqrt(1 - _CORRELATION**2) * residual[1]
        for drawn, target, unit, z in zip(
            (memory_gb, wallclock_s), ("memory", "wallclock"), (6, 0), residual, strict=True
        ):
            fit = job[f"log_{target}_intercept"] + job[f"log_{target}_slope"] * log_mb
            drawn[redraw] = np.exp(fit[redraw] + job[f"log_{target}_sd"][redraw] * z).round(unit)
        is_possible = (memory_gb >= MIN_MEMORY_GB) & (memory_gb <= _MAX_MEMORY_GB)
        is_possible &= (wallclock_s >= _MIN_WALLCLOCK_S) & (wallclock_s <= _MAX_WALLCLOCK_S)
        redraw = np.flatnonzero(~is_possible)
    return memory_gb, wallclock_s


def _names(instr: NDArray[np.int64], dtype: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.str_]:
    """Unique ipppssoots: instrument's letter, seven letters or digits, then ``0`` for an association, else ``q``."""
    numbers = rng.choice(len(_DIGITS) ** 7, len(instr), replace=False)
    parts = [np.array(list(INSTRUMENTS))[instr]]
    parts += [_DIGITS[numbers // len(_DIGITS) ** place % len(_DIGITS)] for place in range(7)]
    parts.append(np.where(dtype == 1, "0", "q"))
    return np.stack(parts, axis=1).reshape(-1).view("U9")
