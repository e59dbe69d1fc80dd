"""Compare a challenger's answers with the limits, and with those of another version on the same jobs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES, LADDER, Ladder
from calmlflow.predictor.bundle import Predictions
from calmlflow.registry.checks import Check
from calmlflow.registry.limits import COMPARED, Limits
from calmlflow.results.comparison import compare_predictions
from calmlflow.results.scores import FEWEST_JOBS, FEWEST_JUDGED, PREDICTED, SCORES, headlines, score_predictions

Row = Mapping[str, float]
"""A score in the table of a comparison: this, other, difference, low, high, jobs, programmes."""

SLICES = ".slices"
"""End of the names of checks on slices."""


def champion_checks(
    name: str, jobs: pd.DataFrame, this: Predictions, other: Predictions, limits: Limits, role: str = "champion"
) -> tuple[list[Check], dict[str, float]]:
    """Compare a challenger's answers with another version's, for the same jobs.

    A score fails where it is worse by more than chance (the whole 95 % interval of the paired difference is on the
    wrong side) and by more than the margin, and passes where the interval ends within the margin (non-inferiority).
    Between the two it fails if the interval is no wider than the margin, since a version that is equal then passes 39
    times of 40; a wider interval, too few jobs or too few programmes decide nothing. Without a margin, what does not
    fail passes. Slices of the jobs have margins of their own; one check is about all slices, so its intervals are wide
    enough for all of them together (Bonferroni). A network that one of the two lacks is not compared.

    Parameters
    ----------
    name : str
        Of the other version, in a sentence.
    jobs : DataFrame of n jobs
        Job records with what they took.
    this, other : mapping of str to ndarray of n rows
        As for `score_predictions`.
    limits : Limits
    role : {"champion", "reference", "live"}
        Of the other version: checks and metrics begin with it.

    Returns
    -------
    list of Check, dict of str to float
        Metrics as in `calmlflow.registry.gate.Verdict`.
    """
    checks: list[Check] = []
    metrics: dict[str, float] = {}
    prefix = "" if role == "champion" else f"{role}_"
    slices = _slices(jobs) if limits.slices else {}
    for target, prediction in PREDICTED.items():
        if prediction not in this or prediction not in other:
            continue
        rows = _rows(target, jobs, this, other)
        margins = limits.margins.get(target, {})
        for score in COMPARED[target]:
            if score not in headlines(target) and score not in margins:
                continue
            check = f"{role}.{target}.{score}"
            if score not in rows:
                if score.startswith("recall_"):
                    checks.append(Check(check, None, "no job needs it", f"not worse than {name}"))
                continue
            row, margin = rows[score], margins.get(score, 0.0)
            found = {role: row["other"], f"{prefix}difference": row["difference"]}
            found |= {f"{prefix}difference_{end}": row[end] for end in ("low", "high")}
            metrics |= {f"{kind}_{target}_{score}": value for kind, value in found.items() if np.isfinite(value)}
            passed, figure, expected = _judged(target, score, row, margin, name)
            checks.append(Check(check, passed, figure, expected))
        own = limits.slices.get(target, {})
        if own and slices:
            tables = {
                of: _rows(target, jobs[members], _of(this, members), _of(other, members))
                for of, members in slices.items()
            }
            checks += [
                _slice_check(f"{role}.{target}.{score}{SLICES}", target, score, tables, margin, name)
                for score, margin in own.items()
                if score in rows
            ]
    return checks, metrics


def on_this_ladder(answers: Predictions, ladder: Ladder) -> Predictions:
    """Answers of a bundle with this ladder, without memory bins where those in force are others."""
    if ladder.has_bins_of(LADDER):
        return answers
    return {name: values for name, values in answers.items() if name not in ("bin_pred", "probabilities")}


def limit_checks(jobs: pd.DataFrame, answers: Predictions, limits: Limits) -> list[Check]:
    """Compare the scores of answers with the limits; a recall of fewer than `FEWEST_JOBS` jobs is not decided."""
    checks = []
    needing = np.bincount(jobs["mem_bin"].to_numpy(), minlength=len(BIN_NAMES))
    counts = {f"recall_{rung}": int(count) for rung, count in zip(BIN_NAMES, needing, strict=True)}
    for target, prediction in PREDICTED.items():
        if prediction not in answers:
            continue
        scores = score_predictions(target, jobs, answers)
        for name, bounds in limits.scores.get(target, {}).items():
            count = counts.get(name, len(jobs))
            # The recall of a bin that no job needs is undefined.
            figure = f"{scores[name]:.4g}" if name in scores else "undefined"
            passed = bounds.hold(scores[name]) if name in scores else None
            if count < FEWEST_JOBS:
                passed, figure = None, f"{figure}, too few jobs ({count}) to tell"
            checks.append(Check(f"{target}.{name}", passed, figure, str(bounds)))
    return checks


def rung_checks(jobs: pd.DataFrame, answers: Predictions) -> list[Check]:
    """See that each rung of the ladder is given to one at least of the jobs that need it, where enough do."""
    checks = []
    for rung, name in enumerate(BIN_NAMES if "bin_pred" in answers else ()):
        needed = jobs["mem_bin"].to_numpy() == rung
        given, count = int(np.sum(answers["bin_pred"][needed] == rung)), int(np.sum(needed))
        figure = f"given to {given:,} of {count:,} jobs that need it" + (
            ", too few to tell" if count < FEWEST_JOBS else ""
        )
        passed = given > 0 if count >= FEWEST_JOBS else None
        checks.append(Check(f"mem_bin.rung_{name}", passed, figure, "given to one of them at least"))
    return checks


def settled(checks: Sequence[Check], wider: Sequence[Check], note: str) -> list[Check]:
    """Decide on more jobs what was not decided; slices, which are small, must hold there too. A note says so."""
    more = {check.name: check._replace(figure=f"{check.figure}, {note}") for check in wider if check.passed is not None}
    return [
        more.get(check.name, check) if check.passed is None or (check.passed and check.name.endswith(SLICES)) else check
        for check in checks
    ]


def _rows(target: str, jobs: pd.DataFrame, this: Predictions, other: Predictions) -> dict[str, Row]:
    table = compare_predictions(target, jobs, this, other).scores
    return {str(score): {str(key): float(value) for key, value in row.items()} for score, row in table.iterrows()}


def _of(answers: Predictions, members: NDArray[np.bool_]) -> Predictions:
    return {name: values[members] for name, values in answers.items()}


def _slices(jobs: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Jobs by instrument and detector, and by association or not; slices of too few jobs are left out."""
    instrument, detector, is_association = (jobs[name].to_numpy() for name in ("instr", "detector", "dtype"))
    found = {
        f"{title} detector {number}": (instrument == code) & (detector == number)
        for code, title in enumerate(INSTRUMENTS.values())
        for number in (0, 1)
    }
    found |= {"associations": is_association == 1, "single exposures": is_association == 0}
    return {of: members for of, members in found.items() if np.count_nonzero(members) >= FEWEST_JUDGED}


def _judged(
    target: str, score: str, row: Row, margin: float, name: str, together: int = 1
) -> tuple[bool | None, str, str]:
    """Whether a score passes, what was found, and what was expected; ``together``: how many are judged in one check."""
    rule = SCORES[target][score]
    allowed = margin * row["other"] if rule.relative_margin else margin
    wider = float(ndtri(0.025 / together) / ndtri(0.025))
    low, high = (row["difference"] + wider * (row[end] - row["difference"]) for end in ("low", "high"))
    figure = f"{row['this']:.4g} against {row['other']:.4g}: {row['difference']:+.2g} ({low:+.2g} to {high:+.2g})"
    expected = f"not worse than {name}" + (f" by more than {allowed:.2g}" if margin else "")
    jobs, programmes = int(row["jobs"]), int(row["programmes"])
    verdict = rule.verdict(row["difference"], (low, high), jobs, allowed, programmes)
    if verdict in ("too few jobs", "too few programmes"):
        return None, f"{figure}, too few jobs ({jobs} of {programmes} programmes) to tell", expected
    if verdict == "worse" or not margin:
        return verdict != "worse", figure, expected
    if (-low if rule.higher_is_better else high) <= allowed:
        return True, figure, expected
    if high - low <= allowed:
        return False, figure, f"{expected}, the whole interval"
    return None, f"{figure}, too wide to tell", expected


def _slice_check(
    check: str, target: str, score: str, tables: Mapping[str, Mapping[str, Row]], margin: float, name: str
) -> Check:
    judged = {
        of: _judged(target, score, rows[score], margin, name, len(tables))
        for of, rows in tables.items()
        if score in rows
    }
    failed = [f"{of} {figure}" for of, (passed, figure, _) in judged.items() if passed is False]
    decided = sum(passed is not None for passed, _, _ in judged.values())
    share = SCORES[target][score].relative_margin
    expected = f"not worse than {name} by more than {margin:.2g}{' of it' if share else ''} in any slice"
    if not decided:
        return Check(check, None, "too few jobs in every slice to tell", expected)
    return Check(check, not failed, "; ".join(failed) or f"holds in {decided} slices", expected)
