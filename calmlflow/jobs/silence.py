"""Where a store of job records has gaps: stretches of time in which no job finished."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
WEEK_S = 7 * DAY_S

GAP_DAYS = 180
"""How far back gaps are looked for."""

MIN_GAP_S = DAY_S
MAX_LIMIT_S = 14 * DAY_S
"""A silence of two weeks is a gap, however often it comes."""

USUAL_TIMES = 2.0
_MIN_WEEKS = 3


@dataclass(frozen=True)
class Gap:
    """A stretch without a finished job.

    Attributes
    ----------
    start, end : int
        Epoch seconds.
    is_open : bool
        It lasts until now.
    """

    start: int
    end: int
    is_open: bool = False

    @property
    def length_s(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Silence:
    """When no job finished, in the last `GAP_DAYS` days.

    Attributes
    ----------
    limit_s : float
        Silences that are longer are gaps.
    gaps : tuple of Gap
        The longest first; one that began before the window is among them.
    days, runs, longest_run : int
        UTC days without a finished job between the first and the last job, runs of such days, and days of the longest.
    """

    limit_s: float = MIN_GAP_S
    gaps: tuple[Gap, ...] = ()
    days: int = 0
    runs: int = 0
    longest_run: int = 0


def find_silence(finished: NDArray[np.int64], now: int) -> Silence:
    """Tell the gaps from the silences that are usual for a store.

    A gap is longer than twice the longest silence of a usual week: the median of the longest silences that reach into
    each of the weeks between the first and the last job, full weeks only. So nights and weekends are no gaps where
    jobs rest then, and a store that gets a job a day is measured by another rule than one that gets ten thousand. Half
    of the weeks may be disturbed before the limit follows them, and then it stays below two weeks. It is a day at
    least, and a day where there are not yet three full weeks to learn from.

    Parameters
    ----------
    finished : ndarray of int64, shape (n,)
        When jobs finished, epoch seconds, ascending, each once. The first may lie before the window, so that a silence
        that began before it is seen.
    now : int
        Epoch seconds; none of ``finished`` is later.
    """
    if not len(finished):
        return Silence()
    since = now - GAP_DAYS * DAY_S
    lengths = np.diff(finished)
    limit_s = min(max(USUAL_TIMES * _usual_s(finished, since), MIN_GAP_S), MAX_LIMIT_S)
    gaps = [Gap(int(finished[at]), int(finished[at + 1])) for at in np.flatnonzero(lengths > limit_s)]
    if now - finished[-1] > limit_s:
        gaps.append(Gap(int(finished[-1]), now, is_open=True))
    # Of what lies before the window only the last day counts, so that days missing at its start are seen.
    missing = np.diff(np.unique(np.maximum(finished // DAY_S, since // DAY_S - 1))) - 1
    return Silence(
        limit_s,
        tuple(sorted(gaps, key=lambda gap: (-gap.length_s, gap.start))),
        days=int(missing.sum()),
        runs=int((missing > 0).sum()),
        longest_run=int(missing.max(initial=0)),
    )


def _usual_s(finished: NDArray[np.int64], since: int) -> float:
    """The median of the weeks' longest silences; 0 where there are too few weeks."""
    first, last = max(int(finished[0]), since), int(finished[-1])
    weeks = (last - first) // WEEK_S
    if weeks < _MIN_WEEKS:
        return 0.0
    ends = last - WEEK_S * np.arange(weeks)
    # Silence i lasts from job i to job i + 1; those that reach into a week are neighbours.
    lows = np.searchsorted(finished[1:], ends - WEEK_S, side="right")
    highs = np.searchsorted(finished[:-1], ends, side="left")
    lengths = np.diff(finished)
    return float(np.median([lengths[low:high].max() for low, high in zip(lows, highs, strict=True)]))


def duration(seconds: float) -> str:
    """A length of time for people: ``45 s``, ``3.2 h``, ``12.0 d``."""
    for unit, size in (("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
