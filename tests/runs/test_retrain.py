"""Each criterion of a retraining alone and at its edge, and the run itself, from no version to a gate that refuses."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import KILLED, PREDICTIONS, conform
from calmlflow.jobs.stores.open import open_store
from calmlflow.jobs.upsert import Batch, upsert
from calmlflow.registry.versions import State, Version
from calmlflow.results.realised import ended_runs
from calmlflow.runs.retrain import (
    Decision,
    Limits,
    RetrainRequest,
    Seen,
    _obstacle,
    contenders,
    judge_jobs,
    judge_predictions,
    new_jobs,
    read_contenders,
    retrain_in_run,
)
from calmlflow.runs.train import TrainingRequest
from calmlflow.settings import BUNDLE_MODEL
from tests.conftest import free_ports, turned_to
from tests.samples.commands import FAST, mlflow_run, runs_named
from tests.samples.prediction_samples import predicted, recorded
from tests.samples.realised_samples import killed, killed_table

OFF = Limits(0, 0, 0, 0, 0, 0)
JOBS = draw_sample(3000)
HOUR_MS = 3_600_000


def only(**limits: float) -> Limits:
    """Every criterion switched off but for one."""
    return Limits(**{**asdict(OFF), **limits})


def met(change) -> list[str]:
    return [criterion.name for criterion in change.criteria if criterion.met]


# -- New jobs and drift ---------------------------------------------------------------------------------------------


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
    change = judge_jobs(now, seen, only(min_new=10))
    assert met(change) == ["min_new"] * (count >= 10)
    assert change.reasons == (f"{count} new jobs (min_new 10)",) * (count >= 10)
    assert met(judge_jobs(now, seen, only(min_share=0.1))) == ["min_share"] * (count >= 10)
    off = judge_jobs(now, seen, OFF)
    assert met(off) == []
    assert (off.figures["new_jobs"], off.figures["new_share"]) == (count, count / 100)
    assert met(judge_jobs(now, now, only(min_new=1, min_share=1e-9, drift=1e-9))) == []


def larger(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs.assign(total_mb=jobs["total_mb"] * 20 + 500)


@pytest.mark.parametrize("count", [199, 200])
def test_drift_is_judged_from_200_new_jobs_on(count):
    # They are of many programmes.
    now = pd.concat([JOBS.iloc[:2000], larger(JOBS.iloc[2000:]).sample(count, random_state=0)])
    change = judge_jobs(now, JOBS.iloc[:2000], only(drift=0.25))
    assert met(change) == ["drift"] * (count >= 200)
    assert ("psi_total_mb" in change.figures) == (count >= 200)


def test_drift_is_met_from_its_limit_on_and_names_the_worst_first():
    seen, now = JOBS.iloc[:2000], pd.concat([JOBS.iloc[:2000], larger(JOBS.iloc[2000:])])
    change = judge_jobs(now, seen, only(drift=0.25))
    assert next(iter(change.drift)) == "total_mb"
    worst = change.drift["total_mb"]["psi"]
    assert change.reasons[0].startswith("drift of total_mb ")
    assert met(judge_jobs(now, seen, only(drift=worst))) == ["drift"]
    assert met(judge_jobs(now, seen, only(drift=np.nextafter(worst, np.inf)))) == []
    assert met(judge_jobs(now, seen, OFF)) == []
    # Jobs of one population: only chance, however low the limit.
    assert met(judge_jobs(JOBS, JOBS.iloc[:2500], only(drift=1e-6))) == []


def test_a_limit_that_is_negative_or_no_number_is_refused():
    for name, wrong in zip(asdict(OFF), (-1, math.nan, math.inf) * 2, strict=True):
        with pytest.raises(InputError, match=f"{name} is .*; expected 0"):
            only(**{name: wrong}).check()
    OFF.check()


# -- Recorded predictions -------------------------------------------------------------------------------------------


def seen_by(jobs: pd.DataFrame, **scores: float) -> Seen:
    table = jobs.assign(bin_pred=jobs["mem_bin"], split=np.where(np.arange(len(jobs)) % 5 == 0, "test", "train"))
    return Seen(3, "Production", table, {"accuracy": 1.0, "kill_time_coverage": 1.0, **scores})


def ended(jobs: pd.DataFrame, *kills: dict) -> pd.DataFrame:
    return ended_runs(jobs, killed_table(*kills))


@pytest.mark.parametrize(
    ("option", "score", "wrong"),
    [
        ("accuracy_drop", "accuracy", {"prob_16g": 0.99}),
        ("cost_rise", "excess_cost", {"bin_pred": 3}),
        ("coverage_drop", "kill_time_coverage", {"kill_time": 1}),
    ],
)
def test_each_realised_criterion_is_met_alone_beyond_its_margin_and_beyond_chance(option, score, wrong):
    new, seen = JOBS.iloc[2000:2100], seen_by(JOBS.iloc[:2000])
    answers = recorded(*[predicted(job, **(wrong if n < 20 else {})) for n, (_, job) in enumerate(new.iterrows())])
    change = judge_predictions(ended(new), seen, answers, Limits())
    assert met(change) == [option]
    worse = change.figures[f"held_out_{score}"] - change.figures[f"realised_{score}"]
    worse = -worse if score == "excess_cost" else worse
    # Worse by the margin is not worse by more than it.
    assert met(judge_predictions(ended(new), seen, answers, only(**{option: worse}))) == []
    assert met(judge_predictions(ended(new), seen, answers, only(**{option: np.nextafter(worse, 0)}))) == [option]
    assert met(judge_predictions(ended(new), seen, answers, OFF)) == []


def test_jobs_that_were_killed_count_and_the_kinds_are_told_apart():
    """Survivors alone are all right; of 100 sized jobs 20 were killed by time, 15 by memory and 5 by their machine."""
    new = JOBS.iloc[2000:2100].assign(mem_bin=0)
    kinds = ["time"] * 20 + ["memory"] * 15 + ["machine"] * 5
    kills = [
        killed(ipst=job["ipst"], timestamp=job["timestamp"], kind=kind, wallclock=job["wallclock"])
        for kind, (_, job) in zip(kinds, new.iloc[60:].iterrows(), strict=True)
    ]
    answers = recorded(*[predicted(job) for _, job in new.iterrows()])
    assert met(judge_predictions(ended(new.iloc[:60]), seen_by(JOBS.iloc[:2000]), answers, Limits())) == []
    change = judge_predictions(ended(new.iloc[:60], *kills), seen_by(JOBS.iloc[:2000]), answers, Limits())
    assert met(change) == ["accuracy_drop", "cost_rise", "coverage_drop"]
    assert {name: change.figures[f"realised_{name}"] for name in ("jobs", "killed_time", "killed_machine")} == {
        "jobs": 95, "killed_time": 20, "killed_machine": 5,
    }  # fmt: skip
    assert change.figures["realised_kill_time_coverage"] == 60 / 80
    assert change.figures["realised_underallocated"] == 15 / 75


def test_a_difference_within_chance_is_not_met():
    new = JOBS.iloc[2000:2040]
    answers = [predicted(job, **({"kill_time": 1} if n < 2 else {})) for n, (_, job) in enumerate(new.iterrows())]
    seen = seen_by(JOBS.iloc[:2000], kill_time_coverage=0.98)
    change = judge_predictions(ended(new), seen, recorded(*answers), Limits())
    assert change.figures["realised_kill_time_coverage"] == 38 / 40
    assert met(change) == []
    assert "perhaps by chance" in change.criteria[2].found


@pytest.mark.parametrize("count", [39, 40])
def test_predictions_are_judged_from_40_jobs_on(count):
    new = JOBS.iloc[2000:2045]
    answers = [predicted(job, kill_time=1) for _, job in new.iloc[:count].iterrows()]
    answers += [predicted(job, version="2", kill_time=1) for _, job in new.iloc[count:].iterrows()]
    change = judge_predictions(ended(new), seen_by(JOBS.iloc[:2000]), recorded(*answers), Limits())
    assert met(change) == ["coverage_drop"] * (count >= 40)
    assert change.figures["realised_jobs"] == count
    assert change.figures["realised_other_versions"] == 45 - count
    if count < 40:
        assert change.criteria[0].found.endswith("39 new jobs with a prediction of version 3, 6 by version 2")


# -- Versions and other runs ----------------------------------------------------------------------------------------


def state_of(stages: dict[int, str], aliases: dict[str, int]) -> State:
    versions = {n: Version("m", n, stage, "READY", "", "", "", 0, {}) for n, stage in stages.items()}
    return State("m", versions, aliases)


@pytest.mark.parametrize(
    ("state", "champion", "challenger"),
    [
        (state_of({}, {}), None, None),
        (state_of({1: "Archived", 2: "Production", 3: "None", 4: "Staging", 5: "Archived"}, {}), 2, 4),
        (state_of({1: "None", 2: "Production"}, {}), 2, None),
        (state_of({1: "None", 2: "None", 3: "None"}, {"production": 2}), 2, 3),
    ],
)
def test_champion_and_challenger_of_a_registry(state, champion, challenger):
    assert contenders(state) == (champion, challenger)


def test_of_runs_that_look_at_the_same_jobs_the_first_one_trains(tracking):
    client = MlflowClient()
    experiment = client.create_experiment("obstacles")
    decision = Decision("training", (), "jobs.csv", 100, 0, *read_contenders())

    def run(started_ms: int, state: str, data: str = "jobs.csv"):
        return client.create_run(experiment, started_ms, {"retrain.decision": state, "retrain.data": data})

    now = int(time.time() * 1000)
    first, second = run(now, "looking"), run(now + 1, "looking")
    run(now - 1, "looking", "others.csv")
    run(now - 1, "not needed")
    run(now - 7 * HOUR_MS, "training")
    assert _obstacle(client, first, decision) == ""
    assert _obstacle(client, second, decision) == f"run {first.info.run_id} trains on the same jobs already"
    # Once one trains it keeps the jobs, even from a run that claims to be older.
    client.set_tag(second.info.run_id, "retrain.decision", "training")
    assert _obstacle(client, first, decision).startswith(f"run {second.info.run_id} trains")
    client.set_terminated(second.info.run_id)
    assert _obstacle(client, first, decision) == ""
    changed = Decision("training", (), "jobs.csv", 100, 0, 999)
    assert _obstacle(client, first, changed).startswith("versions have changed")


# -- The run, on a server of its own --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Its versions belong to this file: those of the shared server belong to other tests."""
    from calmlflow.server import supervisor as embedded

    home = tmp_path_factory.mktemp("retrain") / "home"
    try:
        with turned_to(started := embedded.start(*free_ports(), home)):
            yield started
    finally:
        embedded.stop(home)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def jobs() -> pd.DataFrame:
    return draw_sample(1600, seed=5)


def saved(jobs: pd.DataFrame, path: Path) -> str:
    jobs.to_csv(path, index=False)
    return str(path)


def retrain(server, data: str, stage: str = "Staging", **options):
    """Retrain in this process."""
    limits = Limits(**{name: options.pop(name) for name in list(options) if name in asdict(OFF)})
    output = str(server.home.parent / "trainings")
    training = TrainingRequest(data, output, config=FAST, stage=stage)
    return retrain_in_run(RetrainRequest(training, limits, **options))[0]


def stages() -> dict[int, str]:
    found = MlflowClient().search_model_versions(f"name = '{BUNDLE_MODEL}'")
    return {int(version.version): version.current_stage for version in found}


def latest_run(server):
    return runs_named(server, "retrain")[0]


@pytest.fixture(scope="module")
def champion(own_server, folder, jobs) -> str:
    """Version 1, in Production by way of Staging; gives the table that it was trained on."""
    few = retrain(own_server, saved(jobs.iloc[:39], folder / "few.csv"))
    assert few.verdict.startswith("not needed: ")
    assert few.verdict.endswith("holds 39 valid jobs, 40 are the fewest to train on")
    assert not MlflowClient().search_registered_models()
    table = saved(jobs.iloc[:1000], folder / "champion.csv")
    done = retrain(own_server, table, stage="Production")
    assert (done.verdict, done.version) == ("trained: no version is in Production", 1)
    assert stages() == {1: "Production"}
    assert [run.info.status for run in runs_named(own_server, "promote")] == ["FINISHED", "FINISHED"]
    return table


@pytest.mark.slow
def test_nothing_is_trained_where_nothing_is_new(own_server, champion, capsys):
    done = retrain(own_server, champion)
    assert done.verdict == "not needed: nothing has changed enough since version 1 was trained"
    assert "min_new           1000       0 new jobs" in capsys.readouterr().out
    run = latest_run(own_server)
    assert (run.info.status, run.data.tags["retrain.decision"]) == ("FINISHED", "not needed")
    assert (run.data.metrics["new_jobs"], run.data.metrics["new_share"]) == (0, 0)
    assert stages() == {1: "Production"}


@pytest.mark.slow
def test_a_dry_run_trains_nothing(own_server, champion, folder, jobs):
    """Of 100 new jobs with a prediction, all of them right, 20 were killed by time and 20 for lack of memory."""
    before = stages()
    uri = f"sqlite:///{folder / 'jobs.db'}"
    dead = jobs.iloc[1060:1100].assign(kind=["time", "memory"] * 20, mem_bin=0)
    answers = [predicted(job, version="1") for part in (jobs[1000:1060], dead) for _, job in part.iterrows()]
    with closing(open_store(uri, create=True)) as store:
        upsert(store, Batch(jobs.iloc[:1300].drop(dead.index)), "test")
        store.put(KILLED, conform(dead, KILLED))
        store.put(PREDICTIONS, recorded(*answers).predictions)
    done = retrain(own_server, uri, dry_run=True, min_new=301, min_share=0)
    assert done.verdict.startswith("would train: realised excess_cost ")
    assert done.verdict.endswith("worse beyond chance (cost_rise 0.02)")
    run = latest_run(own_server)
    names = {one.path for one in MlflowClient().list_artifacts(run.info.run_id)}
    assert names >= {"decision.json", "realised.html", "realised.json"}
    found = run.data.metrics
    names = ("jobs", "killed_time", "killed_memory", "killed_machine", "kill_time_coverage", "underallocated")
    assert [found[f"realised_{name}"] for name in names] == [100, 20, 20, 0, 0.75, 0.25]
    assert found["new_jobs"] == 260
    # The training itself logged the scores of its answers to held-out jobs.
    trained = runs_named(own_server, "main")[-1].data.metrics
    for ours in ("mem_bin_accuracy", "mem_bin_underallocated", "mem_bin_excess_cost", "wallclock_kill_time_coverage"):
        held_out = found["held_out_" + ours.removeprefix("mem_bin_").removeprefix("wallclock_")]
        assert held_out == pytest.approx(trained[f"answer_{ours}"], rel=1e-5, abs=1e-9)
    assert 0 <= found["psi_total_mb"] < 0.25
    assert stages() == before


@pytest.fixture(scope="module")
def retrained(own_server, champion, folder, jobs) -> str:
    """Version 2, of 300 new jobs, in Staging; gives its table."""
    table = saved(jobs.iloc[:1300], folder / "new.csv")
    done = retrain(own_server, table, min_new=300)
    assert done.verdict == "trained: 300 new jobs (min_new 300); 30.0% as many as it saw (min_share 0.1)"
    assert (done.champion, done.version) == (1, 2)
    return table


@pytest.mark.slow
def test_new_jobs_make_a_new_version_that_goes_to_staging_through_the_gate(own_server, retrained):
    assert stages() == {1: "Production", 2: "Staging"}
    run = latest_run(own_server)
    tags = run.data.tags
    assert (run.info.status, tags["retrain.decision"], tags["champion_version"]) == ("FINISHED", "trained", "1")
    (training,) = (child for child in runs_named(own_server, "main") if child.data.params["data"] == retrained)
    (gate,) = (child for child in runs_named(own_server, "promote") if child.data.tags["promoted_version"] == "2")
    assert {child.data.tags["mlflow.parentRunId"] for child in (training, gate)} == {run.info.run_id}
    path = MlflowClient().download_artifacts(run.info.run_id, "decision.json", str(own_server.home.parent))
    found = json.loads(Path(path).read_text())
    assert (found["decision"], found["champion"], found["version"]) == ("trained", 1, 2)
    assert [one["name"] for one in found["since_champion"]["criteria"] if one["met"]] == ["min_new", "min_share"]
    assert "total_mb" in found["since_champion"]["drift"]


@pytest.mark.slow
def test_run_again_it_trains_no_second_version_of_the_same_jobs(own_server, retrained):
    before = stages()
    done = retrain(own_server, retrained, min_new=300)
    assert done.verdict.startswith("not needed: version 2 (Staging) is newer than the one in Production")
    assert "all but 0 of these jobs" in done.verdict
    assert stages() == before


@pytest.mark.slow
def test_of_two_at_once_one_trains(own_server, retrained, folder, jobs):
    table, before = saved(jobs, folder / "both.csv"), stages()
    given = {"data": table, "output": own_server.home.parent / "trainings", "config": FAST}
    with ThreadPoolExecutor(2) as both:
        runs = both.map(lambda _: mlflow_run(own_server, "retrain", min_new=100, stage="None", **given), range(2))
        done = list(runs)
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
    assert sorted("\ntrained: " in one.stdout for one in done) == [False, True]
    assert len(stages()) == len(before) + 1


@pytest.mark.slow
def test_a_version_that_the_gate_refuses_fails_the_run_and_changes_no_stage(own_server, retrained, folder):
    before = stages()
    with pytest.raises(CalmlflowError, match="may not go to Staging"):
        retrain(own_server, saved(draw_sample(300, seed=9), folder / "few.csv"), min_new=10)
    run = latest_run(own_server)
    assert (run.info.status, run.data.tags["retrain.decision"]) == ("FAILED", "trained")
    after = stages()
    assert after == {**before, max(after): "None"}
    assert len(after) == len(before) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"min_new": -1}, "min_new is -1; expected 0"),
        ({"stage": "Archived"}, "stage is Archived; expected one of None, Staging, Production"),
        ({"predictions": "sqlite:///nowhere.db"}, "nowhere.db"),
    ],
)
def test_wrong_parameters_fail_the_run(own_server, champion, options, error):
    with pytest.raises(CalmlflowError, match=error):
        retrain(own_server, champion, **options)
    assert latest_run(own_server).info.status == "FAILED"


@pytest.mark.slow
def test_a_champion_whose_jobs_are_lost_is_an_error_and_no_reason_to_train(own_server, retrained):
    client, run = MlflowClient(), latest_run(own_server)
    bare = client.create_run(run.info.experiment_id, run_name="bare")
    version = client.create_model_version(BUNDLE_MODEL, f"{bare.info.artifact_uri}/bundle", bare.info.run_id)
    with pytest.warns(FutureWarning):
        client.transition_model_version_stage(BUNDLE_MODEL, version.version, "Production", True)
    before = stages()
    with pytest.raises(CalmlflowError, match=f"models:/{BUNDLE_MODEL}/{version.version}: run {bare.info.run_id}"):
        retrain(own_server, retrained)
    assert stages() == before
