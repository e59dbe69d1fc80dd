"""Explain an answer: what each level of evidence changed, the cost of each rung, the kill time."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmlflow.hst.features import FEATURES, Features
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import BINS, Bundle, Predictions, nearest_rows
from calmlflow.predictor.evidence import KINDS, LEVELS, NEVER, Evidence
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

SHOWN_ROWS = 5
NO_ROW = np.array([-1])
WIDTH = 100
"""Characters of a line of `as_text`."""


def explain(
    answer: Mapping[str, Any], dataset: str, features: Features | None = None, bundle: Bundle | None = None
) -> dict[str, Any]:
    """Explain an answer that a bundle gave to one job; without a bundle, one that was given by policy.

    Returns
    -------
    dict
        For JSON; docs/reference.md has every key. By policy the lists are empty, and ``last_run`` and ``kill_time``
        None.

        - ``dataset``, and ``answer`` as it was given.
        - ``levels``: ``networks``, each of `calmlflow.predictor.evidence.LEVELS`, and ``unseen`` for a job unlike any
          in training: the answer after the level, ``jobs``, ``strength`` and ``factor``.
        - ``nearest``: the rows of features nearest to the job that finished jobs have.
        - ``last_run``: what the last run of the dataset took, or None.
        - ``rungs``: ``expected_usd`` of each, and which is ``chosen``.
        - ``kill_time``: what it was made of.
        - ``notes``: sentences on what is missing or special.
    """
    found: dict[str, Any] = {"dataset": dataset, "answer": dict(answer), "levels": [], "nearest": [], "last_run": None}
    found |= {"rungs": [], "kill_time": None, "notes": []}
    if bundle is None or features is None:
        missing = "No version of the bundle could be had" if answer.get("fallback") else "No network covers mosaics"
        found["notes"].append(f"{missing}: the answer is the fixed one of the policy.")
        return found
    outputs = bundle.run_known([features])
    corrected = bundle.correct(outputs, [features], [dataset])
    predictions = bundle.answer(outputs, corrected)
    if "by_policy" in predictions:
        # Its warning says why.
        found["notes"].append("The answer is the fixed one of the policy.")
        return found
    memory_gb, wallclock_s = outputs[0, -5:-3]
    found["levels"].append(_level("networks", outputs[0, BINS], memory_gb, wallclock_s))
    if bundle.evidence and corrected:
        for number, name in enumerate(LEVELS):
            before, after = (step[0] for step in corrected.steps[number : number + 2])
            factor = np.exp(after - before)[-2:]
            memory_gb, wallclock_s = memory_gb * factor[0], wallclock_s * factor[1]
            level = _level(name, after[:-2], memory_gb, wallclock_s, factor)
            level["jobs"] = answer["evidence"].get(name)
            level["strength"] = dict(zip(KINDS, bundle.evidence.strength[number].tolist(), strict=True))
            found["levels"].append(level)
        found["nearest"] = _nearest(bundle.evidence, features)
        if run := bundle.evidence.last_run(features, dataset):
            found["last_run"] = {"memory_gb": round(run[0], 4), "wallclock_s": round(run[1])}
    else:
        found["notes"].append("The bundle has no evidence: the answer is that of the networks.")
    if _is_unseen(nearest_rows(outputs, "mem_clf"), answer):
        found["levels"].append(_level("unseen", predictions["probabilities"][0], memory_gb, wallclock_s))
    found["rungs"] = _rungs(bundle, outputs, predictions)
    if bundle.decision is None:
        found["notes"].append("The bundle weighs no costs, it has no decision.json: the rung is the most probable one.")
    elif bundle.decision.risk:
        found["notes"].append(
            f"Each dollar of a killed run counts as {1 + bundle.decision.risk:g} dollars: the bundle avoids risk."
        )
    known_jobs = int(corrected.in_programme[0]) if corrected else 0
    found["kill_time"] = _kill_time(bundle, outputs, predictions, answer, known_jobs)
    return found


def _level(
    name: str,
    probabilities: NDArray[np.float64],
    memory_gb: float,
    wallclock_s: float,
    factor: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    return {
        "level": name,
        "jobs": None,
        "strength": None,
        "probabilities": probabilities.tolist(),
        "memory_gb": float(memory_gb),
        "wallclock_s": float(wallclock_s),
        "factor": None if factor is None else dict(zip(KINDS[1:], factor.tolist(), strict=True)),
    }


def _nearest(evidence: Evidence, features: Features) -> list[dict[str, Any]]:
    """The nearest rows: first by the number of flags that differ, then by the distance of ln(1 + size)."""
    rows, jobs, means = evidence.known_rows()
    distance = np.log1p(rows[:, :2]) - np.log1p(features[:2])
    flags = (rows[:, 2:] != features[2:]).sum(axis=1)
    return [
        {
            "differs": {
                name: value
                for name, value, own in zip(FEATURES, rows[row].tolist(), features, strict=True)
                if value != own
            },
            "jobs": int(jobs[row]),
            "needed_bins": means[row, :-2].tolist(),
            "memory_gb": float(np.exp(means[row, -2])),
            "wallclock_s": float(np.exp(means[row, -1])),
        }
        for row in np.lexsort((np.hypot(*distance.T), flags))[:SHOWN_ROWS]
    ]


def _is_unseen(nearest: NDArray[np.int64] | None, answer: Mapping[str, Any]) -> bool:
    """Whether neither the training of a network nor the evidence has a job like this one."""
    return nearest is not None and nearest[0] < 0 and not answer["evidence"]["row"]


def _rungs(bundle: Bundle, outputs: NDArray[np.float64], predictions: Predictions) -> list[dict[str, Any]]:
    probabilities = predictions["probabilities"]
    ratio: list[Any] = [None] * len(bundle.ladder)
    usd: list[Any] = [None] * len(bundle.ladder)
    if bundle.decision:
        row = nearest_rows(outputs, "mem_clf")
        row = NO_ROW if row is None else row
        ratio = bundle.decision.wallclock_ratio[row][0].tolist()
        usd = (bundle.decision.costs(probabilities, row) * predictions["wall_pred"])[0].tolist()
    return [
        {
            "rung": rung.name,
            "limit_gb": rung.limit_gb,
            "probability": probability,
            "wallclock_ratio": ratio[number],
            "expected_usd": usd[number],
            "chosen": number == int(predictions["bin_pred"][0]),
        }
        for number, (rung, probability) in enumerate(zip(bundle.ladder.rungs, probabilities[0].tolist(), strict=True))
    ]


def _kill_time(
    bundle: Bundle,
    outputs: NDArray[np.float64],
    predictions: Predictions,
    answer: Mapping[str, Any],
    known_jobs: int,
) -> dict[str, Any]:
    predicted_s = float(predictions["wall_pred"][0])
    found = {"predicted_s": predicted_s, "factor": None, "spread": None, "jobs": None, "coverage": None}
    # The calibration knows nothing of a job unlike any seen, which gets the longest kill time.
    nearest = nearest_rows(outputs, "wall_reg")
    if bundle.kill_time and not _is_unseen(nearest, answer):
        factor, jobs = bundle.kill_time.group_of(predicted_s, known_jobs)
        spread = bundle.kill_time.spread
        found |= {"factor": factor, "spread": spread[NO_ROW[0] if nearest is None else nearest[0]] if spread else 1.0}
        found |= {"jobs": jobs, "coverage": bundle.kill_time.coverage}
    return {**found, "shortest_s": KILL_TIME_MIN_S, "longest_s": KILL_TIME_MAX_S}


# -- Text -------------------------------------------------------------------------------------------------------------


def as_text(explanation: Mapping[str, Any]) -> str:
    """Show an explanation as tables in lines of at most `WIDTH` characters."""
    # Rich is not there where jobs are answered only, in the Lambda image.
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False, emoji=False, highlight=False, color_system=None)
    for part in _parts(explanation):
        console.print(part)
    # Rich fills cells up with blanks.
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _names(explanation: Mapping[str, Any]) -> Sequence[str]:
    """The rungs of the bundle, or without one of the ladder in force."""
    return [rung["rung"] for rung in explanation["rungs"]] or LADDER.names


def _parts(explanation: Mapping[str, Any]) -> Iterator[Any]:
    """Sentences and tables."""
    answer = explanation["answer"]
    version = f"version {answer['version']}, " if answer["version"] else ""
    yield (
        f"{explanation['dataset']}: rung {_names(explanation)[answer['memBin']]}, {answer['memVal']:.2f} GB, "
        f"{answer['clockTime']:,} s, kill time {answer['killTime']:,} s ({version}source {answer['source']})"
    )
    if explanation["levels"]:
        yield from _evidence_parts(explanation)
        yield from _decision_parts(explanation)
    for sentence in explanation["notes"]:
        yield f"\nNote: {sentence}"
    for sentence in answer["warnings"]:
        yield f"\nWarning: {sentence}"


def _evidence_parts(explanation: Mapping[str, Any]) -> Iterator[Any]:
    yield "\nThe networks, and the answer after each level of evidence"
    table = _table("level", "jobs", "strength", *_names(explanation), "GB", "change", "s", "change")
    for level in explanation["levels"]:
        changes = [f"x {value:.3f}" for value in (level["factor"] or {}).values()] or ["", ""]
        table.add_row(
            level["level"],
            "" if level["jobs"] is None else f"{level['jobs']:,}",
            " ".join("never" if value >= NEVER else f"{value:.2g}" for value in (level["strength"] or {}).values()),
            *(f"{share:.3f}" for share in level["probabilities"]),
            *(f"{level['memory_gb']:.3f}", changes[0], f"{level['wallclock_s']:,.0f}", changes[1]),
        )
    yield table
    yield (
        "strength: how many jobs (programmes, for row and campaign) the answer before the level counts as, for "
        "probabilities, memory and wallclock; never: the level does not correct it."
    )
    if explanation["nearest"]:
        yield "\nThe nearest rows of features that finished jobs have"
        table = _table("jobs", *_names(explanation), "GB", "s", "differs in")
        for row in explanation["nearest"]:
            table.add_row(
                f"{row['jobs']:,}",
                *(f"{share:.3f}" for share in row["needed_bins"]),
                *(f"{row['memory_gb']:.3f}", f"{row['wallclock_s']:,.0f}"),
                ", ".join(f"{name} {value}" for name, value in row["differs"].items()) or "nothing",
            )
        yield table
    else:
        yield "\nNo finished job is known."
    if run := explanation["last_run"]:
        yield f"\nLast run of {explanation['dataset']}: {run['memory_gb']:.3f} GB, {run['wallclock_s']:,} s."
    else:
        yield f"\nLast run of {explanation['dataset']}: none is known with these features."


def _decision_parts(explanation: Mapping[str, Any]) -> Iterator[Any]:
    yield "\nWhy this rung"
    table = _table("rung", "limit, GB", "probability", "wallclock ratio", "expected cost, $", "")
    for rung in explanation["rungs"]:
        costs = rung["wallclock_ratio"], rung["expected_usd"]
        table.add_row(
            *(rung["rung"], f"{rung['limit_gb']:.3f}", f"{rung['probability']:.4f}"),
            *(("", "") if None in costs else (f"{costs[0]:.3f}", f"{costs[1]:.6f}")),
            "chosen" if rung["chosen"] else "",
        )
    yield table
    if explanation["rungs"][0]["expected_usd"] is not None:
        yield (
            "The lowest expected cost is chosen. wallclock ratio: expected wallclock of jobs that need the rung, over "
            "that of all with such features."
        )
    yield "\nWhy this kill time"
    kill, kill_time = explanation["kill_time"], f"{explanation['answer']['killTime']:,} s"
    if kill["factor"] is None:
        yield f"{kill_time} is the longest, because no training job is like this one."
    else:
        yield (
            f"{kill['predicted_s']:,.0f} s x {kill['factor']:.3f} ^ {kill['spread']:.3f}, rounded up and kept from "
            f"{kill['shortest_s']} to {kill['longest_s']:,} s, gives {kill_time}. The factor is that of jobs predicted "
            f"alike, the power the spread of jobs with such features. It is to cover {100 * kill['coverage']:g} % of "
            f"jobs, and was calibrated on {kill['jobs']:,}."
        )


def _table(*headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        is_text = heading in ("level", "rung", "differs in", "")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table
