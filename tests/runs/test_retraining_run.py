"""The entry point ``retrain`` on a real server, from no version at all to a gate that refuses."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.emit import open_emitter
from tests.conftest import free_ports
from tests.runs.test_retrain import predicted
from tests.samples.commands import FAST, mlflow_run
from tests.test_end_to_end import client, runs_named

pytestmark = pytest.mark.slow

MODEL = "calcloud-predictor"
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory):
    """A server of this file's own: the versions of the bundle on the shared one belong to another test."""
    from calmlflow.server import supervisor as embedded

    home = tmp_path_factory.mktemp("retrain") / "home"
    try:
        yield embedded.start(*free_ports(), home)
    finally:
        embedded.stop(home)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def jobs() -> pd.DataFrame:
    """Of one archive, in no order."""
    return draw_sample(1600, seed=5)


def saved(jobs: pd.DataFrame, path: Path) -> Path:
    jobs.to_csv(path, index=False)
    return path


def retrain(server, data: object, **parameters: object) -> subprocess.CompletedProcess[str]:
    output = Path(server.home.parent, "trainings")
    return mlflow_run(server, "retrain", data=data, output=output, config=FAST, **parameters)


def stages(server) -> dict[int, str]:
    found = client(server).search_model_versions(f"name = '{MODEL}'")
    return {int(version.version): version.current_stage for version in found}


def latest_run(server):
    return runs_named(server, "retrain")[0]


def decision_of(server, run) -> dict:
    text = client(server).download_artifacts(run.info.run_id, "decision.json", str(server.home.parent))
    return json.loads(Path(text).read_text())


@pytest.fixture(scope="module")
def champion(own_server, folder, jobs) -> Path:
    """Version 1, in Production by way of Staging; gives the table that it was trained on."""
    few = retrain(own_server, saved(jobs.iloc[:39], folder / "few.csv"))
    assert few.returncode == 0, few.stderr[-3000:]
    assert "not needed:" in few.stdout
    assert "holds 39 valid jobs, 40 are the fewest to train on" in few.stdout
    assert not client(own_server).search_registered_models()

    table = saved(jobs.iloc[:1000], folder / "champion.csv")
    done = retrain(own_server, table, stage="Production")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training: no version is in Production\n" in done.stdout
    assert "trained: no version is in Production: version 1\n" in done.stdout
    assert stages(own_server) == {1: "Production"}
    assert [run.info.status for run in runs_named(own_server, "promote")] == ["FINISHED", "FINISHED"]
    return table


def test_where_nothing_is_new_nothing_is_trained(own_server, champion):
    before = stages(own_server)
    done = retrain(own_server, champion)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not needed: nothing has changed enough since version 1 was trained\n" in done.stdout
    run = latest_run(own_server)
    assert run.info.status == "FINISHED"
    assert run.data.tags["retrain.decision"] == "not needed"
    assert (run.data.metrics["new_jobs"], run.data.metrics["new_share"]) == (0, 0)
    assert stages(own_server) == before


def test_a_dry_run_says_what_it_would_do_and_does_not(own_server, champion, folder, jobs):
    before = stages(own_server)
    emit = open_emitter(str(folder / "predictions.jsonl"))
    for _, job in jobs.iloc[1000:1060].iterrows():
        emit(predicted(job, version="1", kill_time=1))
    done = retrain(
        own_server,
        saved(jobs.iloc[:1300], folder / "dry.csv"),
        dry_run="true",
        predictions=folder / "predictions.jsonl",
        min_new=301,
        min_share=0,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "would train: realised kill_time_coverage 0, held out " in done.stdout
    assert "min_share          off" in done.stdout
    run = latest_run(own_server)
    assert run.data.tags["retrain.decision"] == "would train"
    assert run.data.tags["retrain.reasons"].endswith("beyond chance (coverage_drop 0.01)")
    assert run.data.metrics["new_jobs"] == 300
    assert run.data.metrics["realised_jobs"] == 60
    assert run.data.metrics["realised_kill_time_coverage"] == 0
    # What the training itself logged of its held-out jobs.
    trained = runs_named(own_server, "main")[-1].data.metrics
    for ours, score in (
        ("accuracy", "mem_bin_accuracy"),
        ("excess_cost", "mem_bin_excess_cost"),
        ("kill_time_coverage", "wallclock_kill_time_coverage"),
    ):
        assert run.data.metrics[f"held_out_{ours}"] == pytest.approx(trained[f"test_{score}"], rel=1e-5, abs=1e-9)
    assert 0 <= run.data.metrics["psi_total_mb"] < 0.25
    assert stages(own_server) == before


@pytest.fixture(scope="module")
def retrained(own_server, champion, folder, jobs) -> tuple[Path, str]:
    """Version 2, of 300 new jobs; gives its table and what was printed. A run that was left behind does not block."""
    table = saved(jobs.iloc[:1300], folder / "new.csv")
    api, run = client(own_server), latest_run(own_server)
    tags = {"retrain.decision": "training", "retrain.data": str(table)}
    left = api.create_run(run.info.experiment_id, int(time.time() * 1000) - 7 * HOUR_MS, tags, "retrain")
    done = retrain(own_server, table, min_new=300)
    assert done.returncode == 0, done.stderr[-3000:]
    api.set_terminated(left.info.run_id, "KILLED")
    return table, done.stdout


def test_new_jobs_make_a_new_version_that_goes_to_staging_through_the_gate(own_server, retrained):
    table, printed = retrained
    assert "trained: 300 new jobs (min_new 300); 30.0% as many as it saw (min_share 0.1): version 2\n" in printed
    assert {number: stages(own_server)[number] for number in (1, 2)} == {1: "Production", 2: "Staging"}
    run = next(run for run in runs_named(own_server, "retrain") if run.data.tags.get("retrain.version") == "2")
    assert run.info.status == "FINISHED"
    assert run.data.tags["retrain.decision"] == "trained"
    assert run.data.tags["champion_version"] == "1"
    (training,) = (child for child in runs_named(own_server, "main") if child.data.params["data"] == str(table))
    (gate,) = (child for child in runs_named(own_server, "promote") if child.data.tags["promoted_version"] == "2")
    assert {child.data.tags["mlflow.parentRunId"] for child in (training, gate)} == {run.info.run_id}
    told = decision_of(own_server, run)
    assert (told["decision"], told["champion"], told["version"]) == ("trained", 1, 2)
    assert told["since_champion"]["figures"]["new_jobs"] == 300
    assert [one["name"] for one in told["since_champion"]["criteria"] if one["met"]] == ["min_new", "min_share"]
    assert "total_mb" in told["since_champion"]["drift"]


def test_run_again_it_trains_no_second_version_of_the_same_jobs(own_server, retrained):
    before = stages(own_server)
    done = retrain(own_server, retrained[0], min_new=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not needed: version 2 (Staging) is newer than the one in Production" in done.stdout
    assert "all but 0 of these jobs" in done.stdout
    assert stages(own_server) == before


def test_while_another_trains_on_the_same_jobs_nothing_is_trained(own_server, retrained, folder, jobs):
    table = saved(jobs.iloc[:1500], folder / "same.csv")
    api, run, before = client(own_server), latest_run(own_server), stages(own_server)
    tags = {"retrain.decision": "training", "retrain.data": str(table)}
    other = api.create_run(run.info.experiment_id, int(time.time() * 1000), tags, "retrain")
    done = retrain(own_server, table, min_new=100)
    api.set_terminated(other.info.run_id)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"not needed: run {other.info.run_id} trains on the same jobs already\n" in done.stdout
    assert stages(own_server) == before


def test_of_two_at_once_one_trains(own_server, retrained, folder, jobs):
    table, before = saved(jobs.iloc[:1600], folder / "both.csv"), stages(own_server)
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda _: retrain(own_server, table, min_new=100, stage="None"), range(2)))
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
    assert sorted("\ntrained: " in one.stdout for one in done) == [False, True]
    assert len(stages(own_server)) == len(before) + 1


def test_what_the_gate_refuses_fails_the_run_and_changes_no_stage(own_server, retrained, folder):
    before = stages(own_server)
    few = saved(draw_sample(60, seed=9), folder / "sixty.csv")
    done = retrain(own_server, few, min_new=10)
    assert done.returncode == 1
    refused = [line for line in done.stderr.splitlines() if line.startswith("error: version ")]
    assert len(refused) == 1
    assert "may not go to Staging" in refused[0]
    assert "Traceback" not in done.stderr.partition("error: version")[0]
    run = latest_run(own_server)
    assert run.info.status == "FAILED"
    assert run.data.tags["retrain.decision"] == "trained"
    after = stages(own_server)
    assert after == {**before, max(after): "None"}
    assert len(after) == len(before) + 1


def test_a_password_in_an_address_is_refused_and_not_repeated(own_server):
    done = retrain(own_server, "postgresql://someone:hidden-word@127.0.0.1/jobs")
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "holds a password" in error
    assert "hidden" not in error
    run = latest_run(own_server)
    assert run.info.status == "FAILED"
    assert not [name for name, text in run.data.tags.items() if name.startswith("retrain.") and "hidden" in text]


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"min_new": -1}, "min_new is -1; expected 0"),
        ({"stage": "Archived"}, "stage is Archived; expected one of None, Staging, Production"),
        ({"predictions": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
    ],
)
def test_wrong_parameters_are_told_in_a_sentence(own_server, champion, parameters, error):
    done = retrain(own_server, champion, **parameters)
    assert done.returncode == 1
    assert f"error: {error}" in done.stderr
    assert latest_run(own_server).info.status == "FAILED"


def test_a_champion_whose_jobs_are_lost_is_an_error_and_no_reason_to_train(own_server, retrained):
    api, run = client(own_server), latest_run(own_server)
    bare = api.create_run(run.info.experiment_id, run_name="bare")
    version = api.create_model_version(MODEL, f"{bare.info.artifact_uri}/bundle", bare.info.run_id)
    with pytest.warns(FutureWarning):
        api.transition_model_version_stage(MODEL, version.version, "Production", archive_existing_versions=True)
    before = stages(own_server)
    done = retrain(own_server, retrained[0])
    assert done.returncode == 1
    assert f"error: models:/{MODEL}/{version.version}: run {bare.info.run_id}" in done.stderr
    assert stages(own_server) == before
