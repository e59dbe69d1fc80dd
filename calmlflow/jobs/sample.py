"""A synthetic sample of jobs with the archive's mix, and with its rare, expensive jobs.

``regimes.csv`` holds, for each of 36 regimes of real jobs (one combination of instrument, detector, dtype, drizcorr,
pctecorr and subarray), its share, percentiles of its sizes, and log-linear fits of memory and wallclock on size.
"""

from importlib.resources import files

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENT_CODES
from calmlflow.hst.errors import InputError
from calmlflow.hst.ladder import LADDER, needed_bin

DEFAULT_SIZE = 20_000

_FIRST_JOB = 1_700_000_000
_SECONDS_BETWEEN_JOBS = 600
# Detectors read out in a handful of modes, so a regime has few sizes per file: these quantiles of its distribution.
_MODES = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
# Jobs with equal features that need more memory also run longer.
_CORRELATION = 0.15
# What no job of the archive goes beyond.
_MEMORY_GB = (0.2, 57.0)
_WALLCLOCK_S = (5.0, 172_800.0)
_RARE_BIN_JOBS = 5
_ALPHABET = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))


def draw_sample(n: int = DEFAULT_SIZE, seed: int = 0) -> pd.DataFrame:
    """Draw synthetic job records.

    Parameters
    ----------
    n : int
        How many, 1 or more.
    seed : int
        Equal sizes and seeds give equal records.

    Returns
    -------
    DataFrame
        Columns of `calmlflow.jobs.records.COLUMNS`. Each memory bin has min(5, n // 10) jobs at least: where chance
        gave fewer, the memory of the jobs that came closest is drawn again within that bin.
    """
    if n < 1:
        raise InputError(f"sample size is {n}; expected 1 or more")
    generator = np.random.default_rng([seed, n])
    with files("calmlflow.jobs").joinpath("regimes.csv").open() as file:
        regimes = pd.read_csv(file)
    shares = regimes["share"].to_numpy()
    regime = regimes.iloc[generator.choice(len(regimes), n, p=shares / shares.sum())].reset_index(drop=True)

    n_files = _quantile(generator.random(n), regime, "n_files", {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0})
    n_files = np.maximum(np.round(n_files), 1)
    mode = generator.choice(_MODES, n)
    mb_per_file = _quantile(mode, regime, "mb_per_file", {"p5": 0.05, "p50": 0.5, "p95": 0.95})
    total_mb = np.round(n_files * mb_per_file)
    crsplit_edges = np.cumsum(regime[["crsplit_0", "crsplit_1"]].to_numpy(), axis=1)
    crsplit = (generator.random(n)[:, None] >= crsplit_edges).sum(axis=1)

    noise = generator.standard_normal((2, n))
    wallclock_noise = _CORRELATION * noise[0] + np.sqrt(1 - _CORRELATION**2) * noise[1]
    log_memory = _expected_log(regime, "memory", total_mb)
    memory = np.clip(np.exp(log_memory + regime["log_memory_sd"].to_numpy() * noise[0]), *_MEMORY_GB)
    memory = _with_rare_bins(generator, memory, log_memory, regime["log_memory_sd"].to_numpy())
    log_wallclock = _expected_log(regime, "wallclock", total_mb)
    wallclock = np.exp(log_wallclock + regime["log_wallclock_sd"].to_numpy() * wallclock_noise)

    return pd.DataFrame(
        {
            "ipst": _names(generator, regime["instr"].to_numpy(), regime["dtype"].to_numpy()),
            "timestamp": _FIRST_JOB + _SECONDS_BETWEEN_JOBS * np.arange(n),
            "n_files": n_files.astype(np.int64),
            "total_mb": total_mb,
            "drizcorr": regime["drizcorr"],
            "pctecorr": regime["pctecorr"],
            "crsplit": crsplit,
            "subarray": regime["subarray"],
            "detector": regime["detector"],
            "dtype": regime["dtype"],
            "instr": regime["instr"],
            "wallclock": np.round(np.clip(wallclock, *_WALLCLOCK_S)),
            "memory": memory,
            "mem_bin": needed_bin(memory),
        }
    )


def _quantile(at: NDArray, regime: pd.DataFrame, name: str, levels: dict[str, float]) -> NDArray:
    """Value of each job at a quantile of its regime, on straight lines through the percentiles that are known."""
    knots = regime[[f"{name}_{level}" for level in levels]].to_numpy(dtype=float)
    positions = np.array(list(levels.values()))
    upper = np.clip(np.searchsorted(positions, at), 1, len(positions) - 1)
    fraction = np.clip((at - positions[upper - 1]) / (positions[upper] - positions[upper - 1]), 0, 1)
    row = np.arange(len(at))
    return knots[row, upper - 1] + fraction * (knots[row, upper] - knots[row, upper - 1])


def _expected_log(regime: pd.DataFrame, target: str, total_mb: NDArray) -> NDArray:
    return (regime[f"log_{target}_intercept"] + regime[f"log_{target}_slope"] * np.log1p(total_mb)).to_numpy()


def _with_rare_bins(generator: np.random.Generator, memory: NDArray, log_expected: NDArray, sd: NDArray) -> NDArray:
    """Give each bin its minimum of jobs, from the jobs that need the fewest deviations to get there."""
    memory = memory.copy()
    least = min(_RARE_BIN_JOBS, len(memory) // 10)
    limits = [_MEMORY_GB[0], *(rung.limit_gb for rung in LADDER)]
    for rung in range(len(LADDER)):
        bins = needed_bin(memory)
        lacking = least - int(np.sum(bins == rung))
        if lacking <= 0:
            continue
        low, high = limits[rung], min(limits[rung + 1], _MEMORY_GB[1])
        middle = np.log((low + high) / 2)
        # Only bins that can spare a job give one.
        spare = np.bincount(bins, minlength=len(LADDER))[bins] > least + lacking
        distance = np.where(spare, np.abs(middle - log_expected) / sd, np.inf)
        chosen = np.argsort(distance, kind="stable")[:lacking]
        memory[chosen] = low + (high - low) * generator.uniform(0.02, 0.98, lacking)
    return memory


def _names(generator: np.random.Generator, instr: NDArray, dtype: NDArray) -> NDArray[np.str_]:
    """Unique ipppssoots whose first letter and last character say what the features say."""
    letters = np.array(list(INSTRUMENT_CODES))
    # A random start and an odd stride walk through the 36^7 names without meeting one twice.
    number = (int(generator.integers(36**7)) + np.arange(len(instr), dtype=np.int64) * 7_654_321) % 36**7
    digits = number[:, None] // 36 ** np.arange(6, -1, -1) % 36
    middle = _ALPHABET[digits].view(f"<U{digits.shape[1]}").ravel()
    return np.strings.add(np.strings.add(letters[instr], middle), np.where(dtype == 1, "0", "q"))
