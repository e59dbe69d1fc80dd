"""When to retrain: every criterion alone and at its edge, realised figures by brute force, and the run itself."""

import json
import math
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.predictions import Recorded, read_recorded
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.predictor.emit import open_emitter, prediction_record
from calmlflow.registry.versions import State
from calmlflow.results.realised import join_predictions, realised_scores
from calmlflow.runs.retrain import Limits, Seen, challenger_of, champion_of, judge_jobs, judge_predictions, new_jobs

OFF = Limits(0, 0, 0, 0, 0, 0)
JOBS = draw_sample(3000)


def only(**limits: float) -> Limits:
    """Every criterion switched off but for one."""
    return Limits(**{**vars(OFF), **limits})


def met(change) -> list[str]:
    return [criterion.name for criterion in change.criteria if criterion.met]


# -- New jobs -------------------------------------------------------------------------------------------------------


def test_a_job_is_new_where_it_was_not_seen_or_seen_older():
    seen = JOBS.iloc[:100]
    now = JOBS.iloc[:104].copy()
    now.loc[7, "timestamp"] += 1
    now.loc[8, "timestamp"] -= 1
    shuffled = now.sample(frac=1, random_state=3)
    assert set(new_jobs(shuffled, seen)["ipst"]) == {*now["ipst"].iloc[100:], now.loc[7, "ipst"]}
    assert new_jobs(seen, seen).empty


@pytest.mark.parametrize("count", [9, 10, 11])
def test_min_new_and_min_share_are_met_from_their_limit_on(count):
    seen, now = JOBS.iloc[:100], JOBS.iloc[: 100 + count]
    assert met(judge_jobs(now, seen, only(min_new=10))) == ["min_new"] * (count >= 10)
    assert met(judge_jobs(now, seen, only(min_share=0.1))) == ["min_share"] * (count >= 10)
    assert met(judge_jobs(now, seen, OFF)) == []
    figures = judge_jobs(now, seen, OFF).figures
    assert (figures["new_jobs"], figures["new_share"]) == (count, count / 100)


def test_nothing_new_meets_nothing():
    assert met(judge_jobs(JOBS, JOBS, only(min_new=1, min_share=1e-9, drift=1e-9))) == []


def test_a_criterion_that_is_met_says_so_with_figure_and_limit():
    change = judge_jobs(JOBS, JOBS.iloc[:2000], only(min_new=1000))
    assert change.reasons == ["1,000 new jobs (min_new 1000)"]


# -- Drift ----------------------------------------------------------------------------------------------------------


def larger(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs.assign(total_mb=jobs["total_mb"] * 20 + 500)


@pytest.mark.parametrize("count", [199, 200])
def test_drift_is_judged_from_200_new_jobs_on(count):
    now = pd.concat([JOBS.iloc[:2000], larger(JOBS.iloc[2000 : 2000 + count])])
    change = judge_jobs(now, JOBS.iloc[:2000], only(drift=0.25))
    assert met(change) == ["drift"] * (count >= 200)
    assert ("psi_total_mb" in change.figures) == (count >= 200)


def test_drift_is_met_from_its_limit_on_and_names_the_worst_first():
    seen, now = JOBS.iloc[:2000], pd.concat([JOBS.iloc[:2000], larger(JOBS.iloc[2000:])])
    change = judge_jobs(now, seen, only(drift=0.25))
    worst = change.drift["psi"].iloc[0]
    assert change.drift.index[0] == "total_mb"
    assert change.reasons[0].startswith("drift of total_mb ")
    assert met(judge_jobs(now, seen, only(drift=worst))) == ["drift"]
    assert met(judge_jobs(now, seen, only(drift=np.nextafter(worst, 9)))) == []
    assert met(judge_jobs(now, seen, OFF)) == []


def test_what_chance_does_is_no_drift_however_low_the_limit():
    assert met(judge_jobs(JOBS, JOBS.iloc[:2500], only(drift=1e-6))) == []


def test_a_limit_below_zero_is_refused():
    for found in fields(Limits):
        for wrong in (-1, math.nan, math.inf):
            with pytest.raises(InputError, match=f"{found.name} is .*; expected 0"):
                only(**{found.name: wrong}).check()
    Limits().check()
    OFF.check()


# -- Recorded predictions -------------------------------------------------------------------------------------------


def predicted(job: pd.Series, version: str = "3", source: str = "registry", **changes: object) -> dict:
    """A record of what was answered a second before a job's end: the bin that it needs, and time enough."""
    probabilities = [0.1] * 4
    probabilities[int(job["mem_bin"])] = 0.7
    answer = {
        "memBin": int(job["mem_bin"]),
        "memVal": float(job["memory"]),
        "clockTime": int(job["wallclock"]),
        "killTime": int(job["wallclock"]) + 1,
        "probabilities": probabilities,
        "version": version,
        "source": source,
    }
    nine = [float(job[name]) for name in FEATURES]
    return {**prediction_record(job["ipst"], nine, answer, float(job["timestamp"]) - 1), **changes}


def recorded(*records: dict) -> Recorded:
    return Recorded(pd.DataFrame(records, columns=list(PREDICTIONS.columns)))


def test_the_latest_prediction_before_the_end_is_joined_and_only_the_version_asked_for_is_judged():
    jobs = JOBS.iloc[:7]
    first, second, third, fourth, fifth, sixth, seventh = (row for _, row in jobs.iterrows())
    end = float(first["timestamp"])
    joined = join_predictions(
        jobs,
        recorded(
            predicted(first, timestamp=end - 5, bin_pred=0),
            predicted(first, timestamp=end, bin_pred=2),
            predicted(first, timestamp=end + 1, bin_pred=3),
            # Ran with the answer of another version: the earlier one of this version says nothing of it.
            predicted(second, timestamp=1.0),
            predicted(second, version="2"),
            predicted(third, version="2"),
            predicted(fourth, source="policy", version=None),
            predicted(fifth, kill_time=None),
            predicted(sixth, source="cache"),
            predicted(JOBS.iloc[100]),
        ).predictions,
        "3",
    )
    assert joined.judged.set_index("ipst")["bin_pred"].to_dict() == {first["ipst"]: 2, sixth["ipst"]: sixth["mem_bin"]}
    assert joined.others == {"2": 2}
    assert joined.left_out == 2
    assert seventh["ipst"] not in set(joined.judged["ipst"])


def brute_force(judged: pd.DataFrame) -> dict[str, float]:
    hits = spent = best = in_time = 0.0
    for _, job in judged.iterrows():
        probabilities = [job[f"prob_{rung.name}"] for rung in LADDER]
        hits += probabilities.index(max(probabilities)) == job["mem_bin"]
        in_time += job["wallclock"] <= job["kill_time"]
        prices = [rung.usd_per_hour / rung.jobs_at_once / 3600 for rung in LADDER]
        chosen, needed = int(job["bin_pred"]), int(job["mem_bin"])
        rungs = [chosen] if chosen >= needed else range(chosen, needed + 1)
        spent += sum(prices[rung] for rung in rungs) * job["wallclock"]
        best += prices[needed] * job["wallclock"]
    n = len(judged)
    return {"accuracy": hits / n, "kill_time_coverage": in_time / n, "excess_cost": spent / best - 1}


def answered(jobs: pd.DataFrame, seed: int = 0, wrong: float = 0.3) -> pd.DataFrame:
    """Predictions of which about a share is wrong in each way."""
    draw = np.random.default_rng(seed)
    records = [
        predicted(
            job,
            bin_pred=int(draw.integers(4)) if draw.random() < wrong else int(job["mem_bin"]),
            prob_8g=0.9 if draw.random() < wrong else 0.1,
            kill_time=int(job["wallclock"] * (0.9 if draw.random() < wrong else 2)) + 1,
        )
        for _, job in jobs.iterrows()
    ]
    return recorded(*records).predictions


def held_out(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs[["ipst", "mem_bin", "wallclock"]].assign(bin_pred=jobs["mem_bin"], split="test")


def test_realised_figures_are_those_of_brute_force():
    jobs = JOBS.iloc[:60]
    judged = join_predictions(jobs, answered(jobs), "3").judged
    expected = brute_force(judged)
    found = realised_scores(judged, held_out(JOBS.iloc[60:200]), {"accuracy": 1.0, "kill_time_coverage": 1.0})
    assert {one.score: one.found for one in found} == pytest.approx(expected)
    assert {one.score: one.held_out for one in found} == {"accuracy": 1, "kill_time_coverage": 1, "excess_cost": 0}
    assert all(one.low < one.worse for one in found)


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II, method 10, example a: 56/70 against 48/80 is 0.2 (0.0524 to 0.3339)."""
    jobs = JOBS.iloc[:80]
    judged = join_predictions(jobs, answered(jobs, wrong=0), "3").judged
    judged["kill_time"] = judged["wallclock"] + np.where(np.arange(80) < 48, 1, -1)
    (found,) = realised_scores(judged, JOBS.iloc[80:150].drop(columns="mem_bin"), {"kill_time_coverage": 56 / 70})
    assert found.worse == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=5e-5)


def test_the_interval_of_the_excess_cost_holds_what_both_sides_draw():
    """Against the delta method: the excess is a ratio of sums, whose standard error follows from its residuals."""
    jobs, others = JOBS.iloc[:1000], JOBS.iloc[1000:2000]
    judged = join_predictions(jobs, answered(jobs), "3").judged
    base = held_out(others).assign(bin_pred=answered(others, seed=5)["bin_pred"].to_numpy())
    found = {one.score: one for one in realised_scores(judged, base, {})}["excess_cost"]
    variance = 0.0
    for side in (judged, base):
        prices = np.array([rung.usd_per_hour / rung.jobs_at_once for rung in LADDER])
        climb = np.array([[prices[c : max(c, n) + 1].sum() for n in range(4)] for c in range(4)])
        needed = side["mem_bin"].to_numpy()
        spent = climb[side["bin_pred"].to_numpy(dtype=int), needed] * side["wallclock"].to_numpy()
        best = prices[needed] * side["wallclock"].to_numpy()
        residuals = spent - spent.sum() / best.sum() * best
        variance += np.sum(residuals**2) / best.sum() ** 2
    assert found.worse - found.low == pytest.approx(1.96 * math.sqrt(variance), rel=0.25)


def seen_by(jobs: pd.DataFrame, **promised: float) -> Seen:
    table = jobs.assign(bin_pred=jobs["mem_bin"], split=np.where(np.arange(len(jobs)) % 5 == 0, "test", "train"))
    return Seen(3, "Production", table, {"accuracy": 1.0, "kill_time_coverage": 1.0, **promised})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("accuracy_drop", {"prob_16g": 0.99}),
        ("cost_rise", {"bin_pred": 3}),
        ("coverage_drop", {"kill_time": 1}),
    ],
)
def test_each_realised_criterion_is_met_alone_beyond_its_margin_and_beyond_chance(name, wrong):
    new, seen = JOBS.iloc[2000:2100], seen_by(JOBS.iloc[:2000])
    records = [predicted(job, **(wrong if n < 20 else {})) for n, (_, job) in enumerate(new.iterrows())]
    change = judge_predictions(new, seen, recorded(*records), Limits())
    assert met(change) == [name]
    worse = {
        "accuracy_drop": change.figures["held_out_accuracy"] - change.figures["realised_accuracy"],
        "cost_rise": change.figures["realised_excess_cost"] - change.figures["held_out_excess_cost"],
        "coverage_drop": change.figures["held_out_kill_time_coverage"] - change.figures["realised_kill_time_coverage"],
    }[name]
    # Worse by the margin is not worse by more than it.
    assert met(judge_predictions(new, seen, recorded(*records), only(**{name: worse}))) == []
    assert met(judge_predictions(new, seen, recorded(*records), only(**{name: np.nextafter(worse, 0)}))) == [name]
    assert met(judge_predictions(new, seen, recorded(*records), OFF)) == []


def test_what_may_be_chance_is_not_met():
    new = JOBS.iloc[2000:2040]
    records = [predicted(job, **({"kill_time": 1} if n < 2 else {})) for n, (_, job) in enumerate(new.iterrows())]
    seen = seen_by(JOBS.iloc[:2000], kill_time_coverage=0.98)
    change = judge_predictions(new, seen, recorded(*records), Limits())
    assert change.figures["realised_kill_time_coverage"] == 38 / 40
    assert met(change) == []
    assert "perhaps by chance" in change.criteria[2].told


@pytest.mark.parametrize("count", [39, 40])
def test_predictions_are_judged_from_40_jobs_on(count):
    new = JOBS.iloc[2000:2045]
    records = [predicted(job, kill_time=1) for _, job in new.iloc[:count].iterrows()]
    records += [predicted(job, version="2", kill_time=1) for _, job in new.iloc[count:].iterrows()]
    change = judge_predictions(new, seen_by(JOBS.iloc[:2000]), recorded(*records), Limits())
    assert met(change) == ["coverage_drop"] * (count >= 40)
    assert change.figures["realised_jobs"] == count
    assert change.figures["realised_other_versions"] == 45 - count
    if count < 40:
        assert change.criteria[0].told.endswith("39 new jobs with a prediction of version 3, 6 by version 2")


# -- Where predictions are recorded ---------------------------------------------------------------------------------


def emitted(uri: str, jobs: pd.DataFrame) -> None:
    emit = open_emitter(uri)
    for _, job in jobs.iterrows():
        emit(predicted(job))


def same_as_emitted(found: Recorded, jobs: pd.DataFrame) -> None:
    expected = recorded(*[predicted(job) for _, job in jobs.iterrows()]).predictions.set_index("ipst").sort_index()
    table = found.predictions.set_index("ipst").sort_index()
    for column in ("timestamp", "bin_pred", "kill_time", "prob_8g", "total_mb"):
        assert table[column].tolist() == expected[column].tolist()
    assert table["version"].tolist() == expected["version"].tolist()


def test_lines_are_read_again_and_half_ones_counted(tmp_path):
    path = tmp_path / "predictions.jsonl"
    emitted(str(path), JOBS.iloc[:20])
    with path.open("ab") as file:
        file.write(b'{"ipst": "j8c6\n[1, 2]\n"text"\n{"version": "3"}\n{"ipst": 5}\n\xff\xfe\n\n')
        file.write(json.dumps(predicted(JOBS.iloc[20], bin_pred="two")).encode() + b"\n")
    found = read_recorded(str(path), JOBS["ipst"].iloc[5:21].tolist())
    assert found.unreadable == 6
    same_as_emitted(Recorded(found.predictions.iloc[:-1]), JOBS.iloc[5:20])
    assert math.isnan(found.predictions["bin_pred"].iloc[-1])


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CalmlflowError, match=r"none.jsonl cannot be read \(No such file.*; expected recorded"):
        read_recorded(str(tmp_path / "none.jsonl"), ["j8c601020"])


def test_a_table_of_a_store_is_read(tmp_path):
    from calmlflow.jobs.stores.open import open_store

    uri = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(uri, create=True)
    store.put(PREDICTIONS, recorded(*[predicted(job) for _, job in JOBS.iloc[:20].iterrows()]).predictions)
    store.close()
    same_as_emitted(read_recorded(uri, JOBS["ipst"].iloc[5:25].tolist()), JOBS.iloc[5:20])


def test_objects_of_s3_are_read(s3):
    s3.create_bucket(Bucket="recorded-predictions")
    emitted("s3://recorded-predictions/some/where", JOBS.iloc[:20])
    s3.put_object(Bucket="recorded-predictions", Key=f"some/where/{JOBS['ipst'].iloc[6]}/0-0.json", Body=b"{")
    found = read_recorded("s3://recorded-predictions/some/where/", JOBS["ipst"].iloc[5:25].tolist())
    same_as_emitted(found, JOBS.iloc[5:20])
    assert found.unreadable == 1
    with pytest.raises(CalmlflowError, match="s3://no-such-bucket/"):
        read_recorded("s3://no-such-bucket/x", ["j8c601020"])


# -- Versions -------------------------------------------------------------------------------------------------------


def test_champion_and_challenger_of_a_registry():
    assert champion_of(State({}, {}, (), 1)) is None
    assert challenger_of(State({}, {}, (), 1), None) is None
    state = State({1: "Archived", 2: "Production", 3: "None", 4: "Staging", 5: "Archived"}, {}, (), 1)
    assert champion_of(state) == 2
    assert challenger_of(state, 2) == 4
    assert challenger_of(State({1: "None", 2: "Production"}, {}, (), 1), 2) is None
    assert champion_of(State({1: "None", 2: "None"}, {"production": 2}, (), 1)) == 2
