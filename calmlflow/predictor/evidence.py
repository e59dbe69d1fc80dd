"""Correct the networks' answers by what finished jobs of the same row, programme, visit and dataset took."""

# An answer starts as the networks' and passes levels, each of which draws it towards what the jobs of the level took.
# With n jobs and a strength of kappa, their mean counts n / (n + kappa), and the answer so far the rest. In a row, each
# programme counts by its own n / (n + kappa): forty jobs of one programme tell little about the next programme.
#
# References: Buehlmann and Straub, Glaubwuerdigkeit fuer Schadensaetze, Mitteilungen der Vereinigung schweizerischer
# Versicherungsmathematiker 70 (1970); Jewell, The use of collateral data in credibility theory, Giornale dell'Istituto
# Italiano degli Attuari 38 (1975).

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES, row_codes, rows_of_codes
from calmlflow.hst.ladder import LADDER, Ladder, needed_bin

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("row", "campaign", "programme", "visit", "run")
"""In the order in which they correct the networks' answer."""

KINDS = ("mem_bin", "memory", "wallclock")
"""What is corrected, by the name of its target."""

# An answer has a probability for each of the rungs of a ladder, then ln GB and ln s: 6 columns on a ladder of 4 rungs.
_BINS, _LOGS = slice(None, -2), slice(-2, None)

# Largest factor by which a level of full weight, and by which all levels together, correct memory or wallclock.
# With the least strength it bounds the weight of an absurd record, which programme and visit may both hold.
_MAX_STEP = np.log(4.0)
# The same for the last run, a single record.
_MAX_STEP_OF_RUN = np.array([1.0, np.log(2.0), np.log(2.0)])  # by kind; a probability moves by the weight at most

_ROW, _CAMPAIGN, _PROGRAMME, _VISIT, _RUN = range(len(LEVELS))
NEVER = 1e6
"""The strength of a level that corrects nothing."""

# Jobs (programmes, for row and campaign) that the answer so far counts as, by level and kind, where there is nothing to
# fit it on. That of ``run`` was measured on 1,317 datasets of the archive that ran twice. Memory is not corrected by
# row: it sits at a few values, one for each version of the software, and a mean over programmes lies between them.
DEFAULT_STRENGTH = np.array([[1.0, NEVER, 1.0], [20.0] * 3, [1.0] * 3, [3.0] * 3, [0.5, 1.0, 0.5]])
STRENGTHS = 2.0 ** np.arange(5, -3, -1)
# Fewer datasets that ran twice do not tell how much the last run counts.
MIN_RUNS = 100
# Half the weight of a job in the campaign shift is gone after so many days. Collections of the archive lie two days
# apart, and differ.
HALF_LIFE_DAYS = 1.0
FOLDER = "evidence"
# Columns of each beside those of an answer; the last runs have ln GB and ln s alone.
_TABLES = {"rows": 4, "groups": 0, "runs": None}
_SETTINGS = f"{FOLDER}/evidence.json"

# A key is made of the codes of a name and of a row, times odd numbers of 64 random bits.
_NAME_FACTORS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], dtype=np.uint64)
_ROW_FACTOR = np.uint64(0xE7037ED1A0B428DB)
_DIGITS = np.zeros(256, dtype=np.int64)
_DIGITS[np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)] = np.arange(1, 37)
# From the nine characters of a name to the codes of its programme, its visit and itself.
_PLACES = np.array([[37 ** (end - 1 - place) if place < end else 0 for end in (4, 6, 9)] for place in range(9)])


@dataclass(frozen=True)
class Finished:
    """n finished jobs."""

    features: NDArray[np.float64]  # (n, 9), raw
    names: Sequence[str] | NDArray[Any]  # ipppssoots in lower case
    memory_gb: NDArray[np.float64]
    wallclock_s: NDArray[np.float64]
    timestamp: NDArray[np.int64]  # epoch seconds

    @classmethod
    def of(cls, *records: "pd.DataFrame") -> "Finished":
        """The jobs of tables of job records, one after the other."""
        columns = {name: np.concatenate([one[name].to_numpy() for one in records]) for name in records[0]}
        return cls(
            np.column_stack([columns[name] for name in FEATURES]).astype(float),
            columns["ipst"],
            columns["memory"].astype(float),
            columns["wallclock"].astype(float),
            columns["timestamp"].astype(np.int64),
        )

    def take(self, chosen: Any) -> "Finished":
        """Some of the jobs."""
        return Finished(*(column[chosen] for column in vars(self).values()))

    def observed(self, ladder: Ladder = LADDER) -> NDArray[np.float64]:
        """What the jobs took, in the columns of an answer, shape (n, 6): the needed bin as 0 and 1, ln GB, ln s."""
        bins = np.eye(len(ladder))[needed_bin(self.memory_gb, ladder)]
        return np.column_stack([bins, np.log(self.memory_gb), np.log(self.wallclock_s)])


class Corrected(NamedTuple):
    """Answers to n jobs, shape (n, 6): probabilities of the bins, ln GB and ln s; NaN without a network."""

    answers: NDArray[np.float64]
    jobs: NDArray[np.int64]  # (n, 4): jobs behind row, programme, visit and run
    steps: tuple[NDArray[np.float64], ...]  # the networks' answers, and those after each of `LEVELS`

    @property
    def in_programme(self) -> NDArray[np.int64]:
        """Jobs of programme and row that a kill time may count on, shape (n,).

        None for a dataset that ran before: within a campaign, jobs of one programme run alike, but a second run comes
        months after the first, and some take twice as long.
        """
        return np.where(self.jobs[:, 3] > 0, 0, self.jobs[:, 1])


@dataclass(frozen=True)
class _Table:
    keys: NDArray[np.uint64]  # (m,), ascending
    values: NDArray[np.float32]  # (m, c)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Values of each key, zeros where it is absent, and whether it is there."""
        if not len(self.keys):
            return np.zeros((*keys.shape, self.values.shape[1])), np.zeros(keys.shape, dtype=bool)
        at = np.minimum(self.keys.searchsorted(keys), len(self.keys) - 1)
        found = self.keys[at] == keys
        return np.multiply(self.values[at], found[..., None], dtype=float), found


class _Found(NamedTuple):
    """What the tables hold for n jobs."""

    row: NDArray[np.float64]  # (n, 10): weight of each kind, weighted sums of the columns, number of jobs
    programme: NDArray[np.float64]  # (n, 6): sums of the columns over the jobs of programme and row
    visit: NDArray[np.float64]
    run: NDArray[np.float64]  # (n, 2): ln GB and ln s
    has_run: NDArray[np.bool_]
    shift: NDArray[np.float64]  # (n, 2)


@dataclass(frozen=True)
class Evidence:
    """Tables of finished jobs, and how much each level counts.

    ``rows`` by row, ``groups`` by programme and row and by visit and row, ``runs`` by dataset and row.
    """

    rows: _Table
    groups: _Table
    runs: _Table
    strength: NDArray[np.float64]  # (5, 3): by level and kind, the jobs that the answer so far counts as
    shift: NDArray[np.float64]  # (4, 2): of ln GB and ln s, by instrument
    newest: int = 0  # timestamp of the newest job, epoch seconds
    ladder: Ladder = LADDER

    def correct(
        self,
        answers: NDArray[np.float64],
        features: ArrayLike,
        names: Sequence[str] | NDArray[Any] | None = None,
        observed: NDArray[np.float64] | None = None,
        whole_programme: bool = False,
        at: ArrayLike | None = None,
    ) -> Corrected:
        """Correct the networks' answers, shape (n, 6), to n jobs of raw features, shape (n, 9).

        Without names only the row and the campaign count. With what the jobs took, `Finished.observed`, each job that
        the tables hold is left out of its own answer; with ``whole_programme`` all jobs of its programme and row are.
        ``at`` is when finished jobs ran, epoch seconds, one or n: before the newest job of the tables the shift of its
        campaign counts less.
        """
        found = self._find(np.asarray(features, dtype=float), names)
        left_out = None
        if observed is not None:
            is_own = found.has_run & (found.run == observed[:, _LOGS].astype(np.float32)).all(axis=1)
            left_out = observed * is_own[:, None]
            found = found._replace(has_run=found.has_run & ~is_own)
        if whole_programme:
            left_out = found.programme
        if at is not None:
            days = (self.newest - np.asarray(at, dtype=float)) / 86_400
            found = found._replace(shift=found.shift * 0.5 ** (np.maximum(days, 0).reshape(-1, 1) / HALF_LIFE_DAYS))
        return _shrink(answers, found, self.strength, left_out, self.ladder)

    def _find(self, features: NDArray[np.float64], names: Sequence[str] | NDArray[Any] | None) -> _Found:
        codes = row_codes(features)
        row, _ = self.rows.find(codes.view(np.uint64))
        shift = self.shift[features[:, -1].astype(np.int64)]
        if names is None:
            nothing = np.zeros((len(codes), len(self.ladder) + 2))
            return _Found(row, nothing, nothing, nothing[:, :2], np.zeros(len(codes), dtype=bool), shift)
        keys = _keys(codes, names)
        groups, _ = self.groups.find(keys[:, :2])
        run, has_run = self.runs.find(keys[:, 2])
        return _Found(row, groups[:, 0], groups[:, 1], run, has_run, shift)

    def known_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The m rows of finished jobs: features (m, 9), jobs (m,), and means of the columns of an answer (m, 6)."""
        values = self.rows.values.astype(float)
        weight = np.maximum(values[:, :3][:, _kinds(values[:, 3:-1])], 1e-9)
        return (
            rows_of_codes(self.rows.keys.view(np.int64)),
            np.rint(values[:, -1]).astype(np.int64),
            values[:, 3:-1] / weight,
        )

    def last_run(self, features: Sequence[float], name: str) -> tuple[float, float] | None:
        """Memory (GB) and wallclock (s) of the last run of a dataset with these features."""
        found = self._find(np.asarray([features], dtype=float), [name])
        return tuple(np.exp(found.run[0]).tolist()) if found.has_run[0] else None

    def share_in(self, jobs: Finished) -> float:
        """Share of the datasets behind the tables that are among these jobs."""
        keys = _keys(row_codes(jobs.features), jobs.names)[:, 2]
        return float(np.isin(self.runs.keys, keys).mean()) if len(self.runs.keys) else 1.0

    def files(self) -> dict[str, bytes]:
        """The files of the folder `FOLDER` in a bundle."""
        tables = {name: getattr(self, name) for name in _TABLES}
        data = {
            "strength": {
                level: dict(zip(KINDS, values, strict=True))
                for level, values in zip(LEVELS, self.strength.tolist(), strict=True)
            },
            "campaign": dict(zip(INSTRUMENTS.values(), np.round(self.shift, 6).tolist(), strict=True)),
            "newest_job": self.newest,
            "lines": {name: len(table.keys) for name, table in tables.items()},
        }
        return {
            _SETTINGS: json.dumps(data, indent=1).encode(),
            **{f"{FOLDER}/{name}.npy": _table_bytes(table) for name, table in tables.items()},
        }

    @classmethod
    def read(cls, files: Mapping[str, Any], ladder: Ladder = LADDER) -> "Evidence | None":
        """Read the files of a bundle with this ladder, bytes or memory maps; None where it has no evidence.

        An InputError names a file that is damaged.
        """
        if _SETTINGS not in files:
            return None
        try:
            data = json.loads(bytes(files[_SETTINGS]))
            strength = np.array([[data["strength"][level][kind] for kind in KINDS] for level in LEVELS], dtype=float)
            shift = np.array([data["campaign"][instrument] for instrument in INSTRUMENTS.values()], dtype=float)
            lines, newest = {name: int(data["lines"][name]) for name in _TABLES}, int(data["newest_job"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{_SETTINGS} does not parse; expected strength, campaign, newest_job and lines"
            ) from error
        if not np.all((strength > 0) & (strength < 1e9)) or shift.shape != (len(INSTRUMENTS), 2):
            raise InputError(f"{_SETTINGS}: strength must be above 0, and campaign two numbers for each instrument")
        if not np.all(np.abs(shift) <= _MAX_STEP):
            raise InputError(f"{_SETTINGS}: a shift of campaign is not between {-_MAX_STEP:.2f} and {_MAX_STEP:.2f}")
        tables = {}
        for name, more in _TABLES.items():
            columns = 2 if more is None else len(ladder) + 2 + more
            file = f"{FOLDER}/{name}.npy"
            if file not in files:
                raise InputError(f"{file} is missing; expected it beside {_SETTINGS}")
            tables[name] = _read_table(files[file], file, lines[name], columns)
        return cls(**tables, strength=strength, shift=shift, newest=newest, ladder=ladder)


def _kinds(columns: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place in `KINDS` of each column of an answer."""
    return np.maximum(np.arange(3 - columns.shape[1], 3), 0)


def _shrink(
    answers: NDArray[np.float64],
    found: _Found,
    strength: NDArray[np.float64],
    left_out: NDArray[np.float64] | None = None,
    ladder: Ladder = LADDER,
) -> Corrected:
    """Correct answers by what was found, without the jobs whose sums are ``left_out``, shape (n, 6)."""
    kinds = _kinds(answers)
    kappa = strength[:, kinds]
    weight, sums = found.row[:, :3][:, kinds], found.row[:, 3:-1]
    programme, visit, in_row = found.programme, found.visit, found.row[:, -1:]
    if left_out is not None:
        rest = _without(programme, left_out)
        before, after = _credible(programme, kappa[_PROGRAMME]), _credible(rest, kappa[_PROGRAMME])
        weight = np.maximum(weight - before[0] + after[0], 0)
        sums = sums - before[1] + after[1]
        in_row = in_row - _jobs(left_out)
        programme, visit = rest, _without(visit, left_out)
    in_programme, in_visit = _jobs(programme), _jobs(visit)
    of_row = _draw(answers, weight, sums, kappa[_ROW])
    of_campaign = of_row.copy()
    of_campaign[:, _LOGS] += found.shift
    of_programme = _draw(of_campaign, in_programme, programme, kappa[_PROGRAMME])
    of_visit = of_run = _near(answers, _draw(of_programme, in_visit, visit, kappa[_VISIT]))
    has_run = found.has_run[:, None]
    if has_run.any():
        bins = np.eye(len(ladder))[np.log(ladder.limits_gb[:-1]).searchsorted(found.run[:, 0], side="right")]
        last = np.concatenate([bins, found.run], axis=1) * has_run
        of_run = _near(answers, _draw(of_visit, has_run.astype(float), last, kappa[_RUN], _MAX_STEP_OF_RUN[kinds]))
    jobs = np.concatenate([in_row, in_programme, in_visit, has_run], axis=1).astype(np.int64)
    return Corrected(of_run, jobs, (answers, of_row, of_campaign, of_programme, of_visit, of_run))


def _draw(
    answers: NDArray[np.float64],
    weight: NDArray[np.float64],
    sums: NDArray[np.float64],
    kappa: NDArray[np.float64],
    max_step: NDArray[np.float64] | float = _MAX_STEP,
) -> NDArray[np.float64]:
    """Draw answers towards the mean sums / weight, which counts weight / (weight + kappa)."""
    total = weight + kappa
    limit = max_step * weight / total
    return answers + np.minimum(np.maximum((sums - weight * answers) / total, -limit), limit)


def _near(answers: NDArray[np.float64], corrected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corrected answers, no further from the networks' than one level of full weight may take them."""
    return np.minimum(np.maximum(corrected, answers - _MAX_STEP), answers + _MAX_STEP)


def _jobs(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number of jobs in sums of the columns, shape (n, 1)."""
    return sums[:, _BINS].sum(axis=1, keepdims=True)


def _credible(sums: NDArray[np.float64], kappa: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Weight of groups in their row, and the means of their columns times it; sums and result of shape (n, 6)."""
    jobs = _jobs(sums)
    return jobs / (jobs + kappa), sums / (jobs + kappa)


def _without(sums: NDArray[np.float64], left_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the jobs that are left, zeros where that is none."""
    rest = sums - left_out
    return rest * (_jobs(rest) > 0.5)


# -- Build and fit ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tally:
    """Sums over the groups of n jobs."""

    codes: NDArray[np.int64]  # (m,), of the rows, ascending
    keys: tuple[NDArray[np.uint64], NDArray[np.uint64]]  # of programme and row, of visit and row, ascending
    row_of_job: NDArray[np.int64]
    group_of_job: tuple[NDArray[np.int64], NDArray[np.int64]]
    sums: tuple[NDArray[np.float64], NDArray[np.float64]]  # (g, 6) each

    @classmethod
    def of(cls, jobs: Finished) -> "_Tally":
        codes, row_of_job = np.unique(row_codes(jobs.features), return_inverse=True)
        observed = jobs.observed()
        grouped = [np.unique(keys, return_inverse=True) for keys in _keys(codes[row_of_job], jobs.names)[:, :2].T]
        return cls(
            codes, (grouped[0][0], grouped[1][0]), row_of_job, (grouped[0][1], grouped[1][1]),
            (_sums(observed, grouped[0][1]), _sums(observed, grouped[1][1])),
        )  # fmt: skip

    def rows(self, kappa: NDArray[np.float64]) -> NDArray[np.float64]:
        """The lines of the table of rows, shape (m, 10), by the strength of programmes, shape (3,)."""
        row_of_programme = np.zeros(len(self.keys[0]), dtype=np.int64)
        row_of_programme[self.group_of_job[0]] = self.row_of_job
        weight, sums = _credible(self.sums[0], kappa[_kinds(self.sums[0])])
        first_of_kind = [0, -2, -1]
        jobs = np.bincount(self.row_of_job, minlength=len(self.codes))
        return np.column_stack([_sums(np.hstack([weight[:, first_of_kind], sums]), row_of_programme), jobs])

    def found(self, kappa: NDArray[np.float64]) -> _Found:
        """What tables of these jobs hold for them, but their own runs."""
        programme, visit = (sums[group] for sums, group in zip(self.sums, self.group_of_job, strict=True))
        n = len(self.row_of_job)
        nothing = np.zeros((n, 2))
        return _Found(self.rows(kappa)[self.row_of_job], programme, visit, nothing, np.zeros(n, dtype=bool), nothing)


def _sums(columns: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of columns, shape (n, c), over groups."""
    count = int(group.max(initial=-1)) + 1
    return np.column_stack([np.bincount(group, column, count) for column in columns.T])


def build_evidence(
    jobs: Finished, strength: NDArray[np.float64], shift: NDArray[np.float64], runs: Finished | None = None
) -> Evidence:
    """Make the tables of n finished jobs; ``runs`` are the last runs of datasets, by default the jobs.

    A clock in the future counts as now, or no later job would ever come after the newest one.
    """
    tally = _Tally.of(jobs)
    keys = np.concatenate(tally.keys)
    order = np.argsort(keys, kind="stable")
    return Evidence(
        _Table(tally.codes.view(np.uint64), tally.rows(strength[_PROGRAMME]).astype(np.float32)),
        _Table(keys[order], np.concatenate(tally.sums)[order].astype(np.float32)),
        _last_runs(jobs if runs is None else runs),
        strength,
        shift,
        int(min(jobs.timestamp.max(initial=0), time.time())),
    )


def _last_runs(runs: Finished) -> _Table:
    """Of the runs of each dataset and row the newest."""
    keys = _keys(row_codes(runs.features), runs.names)[:, 2]
    newest_first = np.lexsort([-runs.timestamp, keys])
    keys, first = np.unique(keys[newest_first], return_index=True)
    return _Table(keys, runs.observed()[newest_first[first], _LOGS].astype(np.float32))


def fit_strength(answers: NDArray[np.float64], jobs: Finished, runs: Finished | None = None) -> NDArray[np.float64]:
    """Fit how much each level counts, shape (5, 3), to the out-of-fold answers of n jobs, shape (n, 6).

    The strength of a level is the one that foretells best what is left out with all its kin: for rows the programme,
    for programmes the visit, for visits the job. Losses: log loss, absolute error of ln GB, squared error of ln s, each
    the mean over programmes of the mean over their jobs: jobs of one programme are much alike, and a few programmes
    hold most jobs. That of the last run is fitted to ``runs``, earlier runs of at least `MIN_RUNS` of the jobs'
    datasets. Kinds without a network, memory by row, and levels with nothing to fit them on keep the
    `DEFAULT_STRENGTH`.
    """
    tally, observed = _Tally.of(jobs), jobs.observed()
    strength = DEFAULT_STRENGTH.copy()
    programme, jobs_of = np.unique(np.asarray(jobs.names, dtype="S4"), return_inverse=True, return_counts=True)[1:]
    share = 1 / (len(jobs_of) * jobs_of[programme])
    found = tally.found(strength[_PROGRAMME])
    left_out = {_ROW: found.programme, _PROGRAMME: found.visit, _VISIT: observed}
    levels = [_VISIT, _PROGRAMME, _ROW]
    if runs is not None:
        run, has_run = _last_runs(runs).find(_keys(tally.codes[tally.row_of_job], jobs.names)[:, 2])
        has_run &= (run != observed[:, _LOGS].astype(np.float32)).any(axis=1)
        if has_run.sum() >= MIN_RUNS:
            found = found._replace(run=run, has_run=has_run)
            levels, left_out[_RUN] = [*levels, _RUN], observed
    for level in levels:
        losses = []
        for kappa in STRENGTHS:
            tried = strength.copy()
            tried[level] = np.where(strength[level] < NEVER, kappa, NEVER)
            if level == _PROGRAMME:
                found = found._replace(row=tally.rows(tried[_PROGRAMME])[tally.row_of_job])
            corrected = _shrink(answers, found, tried, left_out[level])
            losses.append(share @ _losses(corrected.answers if level == _RUN else corrected.steps[_RUN], observed))
        best = STRENGTHS[np.argmin(losses, axis=0)]
        strength[level] = np.where((np.ptp(losses, axis=0) > 0) & (strength[level] < NEVER), best, strength[level])
        found = found._replace(row=tally.rows(strength[_PROGRAMME])[tally.row_of_job])
    return strength


def _losses(answers: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """The loss of each kind, shape (n, 3)."""
    hit = (answers[:, _BINS] * observed[:, _BINS]).sum(axis=1)
    wrong = answers[:, _LOGS] - observed[:, _LOGS]
    return np.column_stack([-np.log(np.maximum(hit, 1e-6)), np.abs(wrong[:, 0]), np.square(wrong[:, 1])])


def fit_campaign(
    answers: NDArray[np.float64], jobs: Finished, strength: NDArray[np.float64], now: float
) -> NDArray[np.float64]:
    """How far ln GB and ln s of the newest jobs lie above those of all jobs, by instrument, shape (4, 2).

    The recent mean of ln(actual) - ln(answer of the row without the job's programme), less the mean of all times, so
    that jobs of one time give 0. A job weighs half after `HALF_LIFE_DAYS` before the newest one, and a programme in its
    row no more than one job; jobs later than ``now`` (epoch seconds) do not count.
    """
    tally = _Tally.of(jobs)
    found = tally.found(strength[_PROGRAMME])
    of_row = _shrink(answers, found, strength, found.programme).steps[_ROW + 1]
    rest = np.clip(np.nan_to_num((jobs.observed() - of_row)[:, _LOGS]), -_MAX_STEP, _MAX_STEP)
    weight = (jobs.timestamp <= now) / _jobs(found.programme)[:, 0]
    shift = np.zeros((len(INSTRUMENTS), 2))
    for code in range(len(INSTRUMENTS)):
        chosen = (weight > 0) & (jobs.features[:, -1] == code)
        if chosen.any():
            days = (jobs.timestamp[chosen].max() - jobs.timestamp[chosen]) / 86_400
            always = weight[chosen]
            recent = always * 0.5 ** (days / HALF_LIFE_DAYS)
            difference = recent @ rest[chosen] / recent.sum() - always @ rest[chosen] / always.sum()
            shift[code] = difference * recent.sum() / (recent.sum() + strength[_CAMPAIGN, 1:])
    return shift


# -- Keys and files ---------------------------------------------------------------------------------------------------


def _keys(codes: NDArray[np.int64], names: Sequence[str] | NDArray[Any]) -> NDArray[np.uint64]:
    """Keys of programme, visit and dataset, each with the row, shape (n, 3)."""
    try:
        text = np.asarray(names, dtype="S9")
    except UnicodeEncodeError as error:
        raise InputError(f"the name {error.object!r:.60} is no dataset's; expected nine letters and digits") from error
    digits = _DIGITS[text.view(np.uint8).reshape(len(text), 9)]
    of_name = (digits @ _PLACES).view(np.uint64) * _NAME_FACTORS
    return of_name + (codes.view(np.uint64) * _ROW_FACTOR)[:, None]


def _table_bytes(table: _Table) -> bytes:
    """A table as one .npy file of 32-bit words: first the keys, then the lines of values."""
    words = np.concatenate([table.keys.view(np.uint32), table.values.reshape(-1).view(np.uint32)])
    file = io.BytesIO()
    np.save(file, words.astype("<u4", copy=False), allow_pickle=False)
    return file.getvalue()


def _read_table(content: Any, file: str, lines: int, columns: int) -> _Table:
    expected = f"expected {lines:,} ascending keys with {columns} finite numbers each, as {_SETTINGS} says"
    try:
        header = io.BytesIO(bytes(content[:256]))
        version = np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        if version != (1, 0) or dtype != np.dtype("<u4") or shape != (lines * (2 + columns),):
            raise ValueError(f"shape {shape}, type {dtype}")
        words = np.frombuffer(content, dtype="<u4", offset=header.tell())
        if words.shape != shape:
            raise ValueError(f"{words.size} words")
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged or belongs to other evidence; {expected}") from error
    keys = words[: 2 * lines].view(np.uint64)
    values = words[2 * lines :].view(np.float32).reshape(lines, columns)
    if np.any(keys[1:] <= keys[:-1]) or not np.all(np.isfinite(values)):
        raise InputError(f"{file} is damaged; {expected}")
    return _Table(keys, values)
