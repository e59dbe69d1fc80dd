"""Split jobs into parts, deal them to members, and fit the scaling of the two size features."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import PowerTransformer

from calmlflow.errors import InputError
from calmlflow.hst.scaling import Scaling, yeo_johnson

Split = Literal["programme", "job", "time"]
"""What is held out together: whole programmes, single jobs, or the newest jobs."""

SPLITS: tuple[Split, ...] = get_args(Split)

# Odd numbers of SplitMix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
_STEP = 0x9E3779B97F4A7C15
_MIXERS = tuple((np.uint64(shift), np.uint64(factor)) for shift, factor in
                ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)))  # fmt: skip


def parts_of_jobs(
    names: ArrayLike, timestamps: ArrayLike, split: Split, seed: int, cuts: Sequence[float], stream: int = 0
) -> NDArray[np.int64]:
    """Assign each of n jobs to a part, from 0, by ascending ``cuts`` between 0 and 1; shape (n,).

    A programme or job has a number between 0 and 1 that its name, ``seed`` and ``stream`` alone decide, and is in the
    part whose cuts enclose it: always the same, whatever other jobs there are. By time, parts are consecutive, equal
    timestamps stay together, and cuts are the shares of the jobs that are older, as nearly as timestamps allow. Raises
    an InputError where timestamps are too few.
    """
    if split == "time":
        return _parts_by_time(np.asarray(timestamps), cuts)
    names = pd.Series(names, dtype="str")
    of_job, known = (slice(None), names) if split == "job" else pd.factorize(names.str[:4])
    return np.searchsorted(cuts, hashed(known, seed, stream), side="right")[of_job]


def hashed(keys: ArrayLike, seed: int, stream: int = 0) -> NDArray[np.float64]:
    """Map each of n ASCII names, of 16 characters at most, to a number in [0, 1) by ``seed`` and ``stream``."""
    names = np.asarray(keys, dtype=str)
    letters = names.view(np.uint32).reshape(len(names), names.itemsize // 4)
    # Twice as quick as NumPy's own way from text to bytes.
    padded = np.zeros((len(names), 16), dtype=np.uint8)
    padded[:, : letters.shape[1]] = letters
    words = padded.view("<u8").astype(np.uint64)
    # The remainder, because a seed of a run may have any number of digits.
    mixed = _mix(np.array([(seed + (stream + 1) * _STEP) % 2**64], dtype=np.uint64))
    for word in words.T:
        mixed = _mix(mixed ^ word)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + np.uint64(_STEP)
    for shift, factor in _MIXERS:
        values = (values ^ (values >> shift)) * factor
    return values


def _parts_by_time(timestamps: NDArray, cuts: Sequence[float]) -> NDArray[np.int64]:
    moments, moment_of_job, counts = np.unique(timestamps, return_inverse=True, return_counts=True)
    if len(moments) <= len(cuts):
        found = f"{len(moments)} different timestamps" if len(moments) > 1 else "one timestamp"
        raise InputError(
            f"{len(timestamps):,} jobs have {found}; expected {len(cuts) + 1} at least for split=time, "
            "or split=programme or split=job"
        )
    older = np.cumsum(counts) / len(timestamps)
    starts: list[int] = []
    for left, cut in zip(range(len(cuts), 0, -1), cuts, strict=True):
        nearest = int(np.abs(older - cut).argmin()) + 1
        # Each part has a moment of its own.
        starts.append(min(max(nearest, starts[-1] + 1 if starts else 1), len(moments) - left))
    return np.searchsorted(starts, moment_of_job, side="right")


def deal(bins: ArrayLike, members: int, seed: int) -> NDArray[np.int64]:
    """Deal shuffled jobs to members like cards, stratified by memory bin; the member (from 0) of each job, shape (n,).

    Members differ by one job at most, and so do their jobs of each bin: unlike scikit-learn's splitters it takes a bin
    with a single job, which the rarest bin may have.
    """
    bins = np.asarray(bins)
    order = np.random.default_rng(seed).permutation(len(bins))
    order = order[np.argsort(bins[order], kind="stable")]
    member_of_job = np.empty(len(bins), dtype=np.int64)
    member_of_job[order] = np.arange(len(bins)) % members
    return member_of_job


def fit_scaling(features: ArrayLike) -> Scaling:
    """Fit Yeo-Johnson power, mean and deviation of n_files and total_mb to raw features of jobs, shape (n, 9)."""
    sizes = np.asarray(features, dtype=float)[:, :2]
    lambdas, mus, sigmas = [], [], []
    for column in sizes.T:
        # A column with one value has no power to fit; any finite one does.
        varies = np.ptp(column) > 0
        lam = float(PowerTransformer(standardize=False).fit(column[:, None]).lambdas_[0]) if varies else 1.0
        powered = yeo_johnson(column, lam)
        lambdas.append(lam)
        mus.append(float(powered.mean()))
        sigmas.append(float(powered.std()) or 1.0)
    return Scaling((lambdas[0], lambdas[1]), (mus[0], mus[1]), (sigmas[0], sigmas[1]))
