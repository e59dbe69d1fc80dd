"""The gate against the real server: every check fails alone, a refusal changes no stage, force is seen."""

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from onnx import TensorProto, helper

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import BIN_NAMES, LADDER
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import Finished
from calmlflow.predictor.manifest import MANIFEST, write_manifest
from calmlflow.registry import gate
from calmlflow.registry.gate import judge, reference_version
from calmlflow.registry.held_out import judged_jobs, new_to, newest_of
from calmlflow.registry.history import Event
from calmlflow.registry.limits import DEFAULT, read_limits
from calmlflow.registry.package import model_digest
from calmlflow.registry.versions import State, Version, read_state
from calmlflow.results.scores import DECISIVE, score_predictions
from calmlflow.runs.promote import PromotionRequest, parse_version, promote_in_run, roll_back_to
from tests.registry.conftest import log_files
from tests.samples.predictor_samples import write_network

NETWORKS = ("mem_clf", "mem_reg", "wall_reg")
WITHOUT_CHAMPION = {
    *("artifacts", "serving", "answers", "answers.probes", "data.schema", "data.jobs", "data.age"),
    *(f"onnx.{network}" for network in NETWORKS),
    *("mem_bin.accuracy", "mem_bin.excess_cost", "memory.mae", "memory.log_mae"),
    *("wallclock.log_mae", "wallclock.kill_time_coverage", "wallclock.kill_time_reserved"),
    *(f"mem_bin.rung_{name}" for name in BIN_NAMES),
}
AGAINST_CHAMPION = {
    *(f"champion.mem_bin.{score}" for score in ("accuracy", "recall_2g", "recall_8g", "excess_cost")),
    *(f"champion.{target}.{score}" for target in ("memory", "wallclock") for score in ("rmse", "mae")),
    "champion.wallclock.kill_time_coverage",
}


@pytest.fixture
def client(trained, tracking) -> MlflowClient:
    mlflow.set_experiment("gate-test")
    return MlflowClient()


def add(client, model, source=None, run_id=None, **tags: str) -> int:
    """A new version: the session's training, but for what is given."""
    known = client.get_model_version("calcloud-predictor", "1")
    version = client.create_model_version(
        model,
        source or known.source,
        run_id or known.run_id,
        {name: text for name, text in known.tags.items() if not name.startswith("calmlflow.")} | tags,
        await_creation_for=0,
        model_id=None if source else known.source.removeprefix("models:/"),
    )
    return int(version.version)


def verdict(model, number=1, champion=None, limits="default", data=None):
    versions = read_state(model).versions
    return judge(versions[number], versions.get(champion), read_limits(str(limits)), data, lambda done, note: None)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Leave out the two checks that take seconds, where a test is not about them."""
    monkeypatch.setattr(
        gate,
        "check_onnx",
        lambda bundle, networks, features: [gate.Check(f"onnx.{name}", True, "", "left out") for name in networks],
    )
    monkeypatch.setattr(gate, "check_serving", lambda model, bundle, networks: "left out")


# -- What passes, and each check failing alone ------------------------------------------------------------------------


def test_a_good_version_passes_every_check(client, model, trained):
    number = add(client, model)
    found = verdict(model, number)
    assert found.failed == []
    assert {check.name for check in found.checks} == WITHOUT_CHAMPION
    # No job vouches for itself: each is judged by the answer that leaves it out.
    table = pd.read_csv(trained / "data" / "latest.csv")
    held_out = Finished.of(jobs := table[table["split"] == "test"])
    bundle = Bundle.load(trained / "models")
    left_out, with_own = (bundle.predict(held_out.features, held_out.names, finished) for finished in (held_out, None))
    for target in ("mem_bin", "memory", "wallclock"):
        for name, value in score_predictions(target, jobs, left_out).items():
            assert found.metrics[f"challenger_{target}_{name}"] == pytest.approx(value, rel=1e-4, nan_ok=True), name
    assert score_predictions("memory", jobs, with_own)["mae"] < 0.9 * found.metrics["challenger_memory_mae"]


def test_a_version_is_no_worse_than_itself(quick, client, model):
    add(client, model), add(client, model)
    found = verdict(model, 2, champion=1)
    assert found.failed == []
    names = {check.name for check in found.checks}
    assert names >= WITHOUT_CHAMPION | AGAINST_CHAMPION
    assert {value for name, value in found.metrics.items() if name.startswith("difference")} == {0.0}


@pytest.mark.parametrize("name", ["served.py", "MLmodel", "requirements.txt", "code/sitecustomize.py"])
def test_nothing_of_a_version_runs_that_is_not_what_was_registered(client, model, trained, copy, tmp_path, name):
    canary = f"open({str(tmp_path / 'has-run')!r}, 'w')\n"
    (copy / "served.py").write_text(canary + (copy / "served.py").read_text())
    registered = model_digest(copy)
    # One line more, or one file.
    line = canary if name.endswith(".py") else "# one line more\n"
    with (copy / name).open("a") as file:
        file.write(line)
    files = log_files(copy, trained / "data" / "latest.csv")
    add(client, model, files.source, files.run_id, model_sha256=registered)
    words = rf"artifacts: .*expected {registered[:12]}\.\.\. as registered.* register it anew \(--force overrides"
    for force in (False, True):
        with pytest.raises(CalmlflowError, match=words):
            promote_in_run(PromotionRequest("Production", 1, model, force=force, reason="the queue is full"))
    assert (read_state(model).stages, (tmp_path / "has-run").exists()) == ({1: "None"}, False)
    assert client.get_model_version(model, "1").tags["gate"] == "refused"
    if name == "served.py":
        # With its own digest it is what was registered, and is run.
        add(client, model, files.source, files.run_id, model_sha256=files.digest)
        assert verdict(model, 2).failed == []
        assert (tmp_path / "has-run").exists()


def test_a_graph_that_asks_for_gigabytes_is_refused_before_a_session_is_made(quick, client, model, trained, copy):
    bundle = copy / "artifacts" / "bundle"
    product = helper.make_node("MatMul", ["features", "w"], ["y"])
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[9, 40_000_000])
    bomb = helper.make_model(helper.make_graph([product], "bomb", [], [], [huge])).SerializeToString()
    (bundle / "mem_reg" / "mem_reg.onnx").write_bytes(bomb)
    write_manifest(bundle)
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    files = log_files(copy, trained / "data" / "latest.csv")
    add(client, model, files.source, files.run_id, model_sha256=files.digest, bundle_sha256=digest)
    (failed,) = [check for check in verdict(model, 1).failed if check.name == "artifacts"]
    assert "mem_reg.onnx has weights of shape [9, 40000000]" in failed.figure


@pytest.mark.parametrize("said", [-39.0, np.nan])
def test_networks_that_say_what_cannot_be_true_are_refused_by_name(quick, client, model, trained, copy, said):
    bundle = copy / "artifacts" / "bundle"
    write_network(bundle / "wall_reg" / "wall_reg.onnx", 1, 0, said)
    write_manifest(bundle)
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    files = log_files(copy, trained / "data" / "latest.csv")
    add(client, model, files.source, files.run_id, model_sha256=files.digest, bundle_sha256=digest)
    found = {check.name: check.figure for check in verdict(model, 1).failed}
    assert set(found) == {"answers", "answers.probes"}
    for figure in found.values():
        assert re.match(r"([\d,]+) of \1 jobs are answered by policy, for wall_reg gave", figure)
    with pytest.raises(CalmlflowError, match=r"answers: .*wall_reg.*--force overrides judgements"):
        promote_in_run(PromotionRequest("Production", 1, model, force=True, reason="the queue is full"))


def test_a_challenger_must_give_every_answer_that_the_champion_gives(quick, client, model):
    known = client.get_model_version("calcloud-wallclock", "1")
    client.create_model_version(
        model, known.source, known.run_id, known.tags, await_creation_for=0,
        model_id=known.source.removeprefix("models:/"),
    )  # fmt: skip
    add(client, model)
    (failed,) = [check for check in verdict(model, 1, champion=2).failed if check.name == "champion"]
    assert failed.expected == "every answer that version 2 gives"
    assert "it gives no bin_pred, mem_pred, probabilities" in failed.figure


def gate_file(tmp_path: Path, **limits) -> str:
    """The default limits, but for some sections."""
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DEFAULT.read_text()) | limits))
    return str(path)


def test_a_limit_is_checked_where_there_is_one(quick, client, model, tmp_path):
    scores = {
        "mem_bin": {"accuracy": {"min": 0.9999}, "excess_cost": {"max": 0.0}},
        "memory": {"mae": {"max": 0.001}},
        "wallclock": {"kill_time_coverage": {"min": 1.0001}, "kill_time_reserved": {"min": 1, "max": 1.01}},
    }
    path = gate_file(tmp_path, scores=scores, data={"max_age_days": 1, "min_jobs": 2001})
    found = verdict(model, add(client, model), limits=path)
    of_scores = {f"{target}.{score}" for target, limits in scores.items() for score in limits}
    assert {check.name for check in found.failed} == of_scores | {"data.jobs", "data.age"}
    assert all(check.expected for check in found.failed)
    assert {check.name for check in found.checks} == of_scores | {
        name
        for name in WITHOUT_CHAMPION
        if name.split(".")[0] in ("artifacts", "onnx", "serving", "answers", "data") or ".rung_" in name
    }


def test_what_few_held_out_jobs_leave_open_is_decided_on_all(quick, client, model, trained, tmp_path):
    """Nine of the jobs held out need the second rung, and hundreds of the jobs of the training."""
    held = pd.read_csv(trained / "data" / "latest.csv")
    second = held.index[(held["split"] == "test") & (held["mem_bin"] == 1)]
    number = add_with_table(
        client, model, trained, tmp_path,
        lambda t: t.assign(split=np.where(t.index.isin(second[9:]), "train", t["split"])),
    )  # fmt: skip
    path = gate_file(tmp_path, scores={"mem_bin": {"recall_8g": {"max": 0.001}}})
    found = verdict(model, number, add(client, model), limits=path)
    assert [check.name for check in found.failed] == ["mem_bin.recall_8g"]
    checks = {check.name: check for check in found.checks}
    assert checks["mem_bin.recall_8g"].figure.endswith("of all 2,000 jobs of the training")
    assert checks["champion.mem_bin.recall_8g"].passed
    assert checks["champion.mem_bin.recall_8g"].figure.endswith("of the 2,000 jobs that both trainings knew")


def add_with_table(client, model, trained, tmp_path, change) -> int:
    table = change(pd.read_csv(trained / "data" / "latest.csv", dtype={"ipst": str}))
    table.to_csv(tmp_path / "latest.csv", index=False)
    with mlflow.start_run() as active:
        mlflow.log_artifact(str(tmp_path / "latest.csv"), "data")
    return add(client, model, run_id=active.info.run_id)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda t: t.assign(n_files=[0, *t["n_files"][1:]]), "data.schema", "1 of 2,000 records break the schema"),
        (lambda t: t.drop(columns="memory"), "data.schema", "has no column memory"),
        (lambda t: t.drop(columns="split"), "data.schema", "has no column split"),
        (lambda t: t.assign(split="train"), "data.schema", "holds no test jobs"),
        (lambda t: t.assign(timestamp=0), "data.age", "no timestamps"),
        (lambda t: t.assign(timestamp=4_000_000_000), "data.age", "newest job -"),
        (None, "data.schema", "data/latest.csv of run 0000"),
    ],
)
def test_training_jobs_must_be_valid_and_of_known_age(client, model, trained, tmp_path, change, name, words):
    number = add_with_table(client, model, trained, tmp_path, change) if change else add(client, model, run_id="0" * 32)
    jobs = judged_jobs(read_state(model).versions[number], None, None)
    failed = {check.name: check.figure for check in gate._data_checks(jobs, read_limits("default")) if not check.passed}
    assert words in failed[name]
    # Without a table, nothing is known of its age and size either.
    assert set(failed) <= {name, "data.jobs", "data.age"}


@pytest.mark.parametrize("failing", ["data.schema", "ladder"])
def test_a_version_that_cannot_be_scored_must_still_be_servable(client, model, monkeypatch, failing):
    def broken(*of):
        raise InputError("it does not answer")

    monkeypatch.setattr(gate, "check_serving", broken)
    if failing == "ladder":
        monkeypatch.setattr(gate, "LADDER", replace(LADDER, version="another"))
    number = add(client, model, run_id=None if failing == "ladder" else "0" * 32)
    assert {failing, "serving"} <= {check.name for check in verdict(model, number).failed}
    with pytest.raises(CalmlflowError, match="may not go to Staging: serving: it does not answer"):
        promote_in_run(PromotionRequest("Staging", number, model, force=True, reason="test"))


# -- Which jobs, and which other version -------------------------------------------------------------------------------


def test_the_champion_is_not_judged_by_jobs_that_it_was_trained_on(client, model, trained, tmp_path):
    table = pd.read_csv(trained / "data" / "latest.csv", dtype={"ipst": str})
    held_out = table[table["split"] == "test"]

    def compared(names) -> int:
        """Of the challenger's held-out jobs, with a champion that was trained on these."""
        number = add_with_table(
            client, model, trained, tmp_path,
            lambda t: t.assign(split=np.where(t["ipst"].isin(set(names)), "train", "test")),
        )  # fmt: skip
        return len(new_to(read_state(model).versions[number], held_out))

    assert compared(held_out["ipst"][:100]) == len(held_out) - 100
    # Ten jobs tell nothing.
    assert compared(held_out["ipst"][:-10]) == len(held_out)


def past(versions: dict[int, tuple], *moves: tuple[int, str], model: str = "m") -> State:
    """Versions with their scores (None: unknown), and their moves to Production, with the day."""
    names = [f"score.{target}.{score}" for target, score in DECISIVE.items()]
    events: dict[int, dict] = {number: {} for number in versions}
    for count, (number, day) in enumerate(moves, 1):
        event = Event(count, "promotion", number, "Production", None, "me", f"{day}T00:00:00+00:00")
        events[number][event.tag] = event.to_json()
    return State(
        model,
        {
            number: Version(
                model, number, "None", "READY", "", "", "", 0,
                events[number] | {name: str(s) for name, s in zip(names, scores, strict=True) if s is not None},
            )
            for number, scores in versions.items()
        },
        {},
    )  # fmt: skip


def test_the_reference_is_the_best_version_of_the_last_year():
    today = datetime.now(UTC).date()
    long_ago, spring, summer, autumn = (str(today - timedelta(days=days)) for days in (700, 500, 300, 100))
    best, good, fair = (0.01, 0.3, 500), (0.02, 0.3, 500), (0.03, 0.3, 500)
    state = past(
        {1: best, 2: (0.02, None, 500), 3: good, 4: fair, 5: fair, 6: fair},
        (1, long_ago), (2, spring), (3, summer), (4, autumn), (5, str(today)),
    )  # fmt: skip
    versions = state.versions

    def reference(named, champion=5):
        found = reference_version(state, versions[6], versions.get(champion), named)
        return found and found.number

    # Version 1 left Production more than a year ago, 2 less; of that one a score is not known.
    assert (reference("best"), reference("best", champion=3)) == (3, 4)
    assert (reference(1), reference(5), reference("none"), reference("best", champion=None)) == (1, None, None, None)
    with pytest.raises(InputError, match="reference 9 of the gate is no version of m"):
        reference(9)


def test_the_reference_of_a_single_network_is_the_best_by_its_own_score():
    today = str(datetime.now(UTC).date())
    worse, best, fair = ((None, score, None) for score in (0.5, 0.3, 0.4))
    state = past({1: worse, 2: best, 3: fair, 4: fair}, (1, today), (2, today), (3, today), model="calcloud-memory")
    versions = state.versions
    assert reference_version(state, versions[4], versions[3], "best") is versions[2]


def test_a_reference_whose_files_are_gone_stops_nothing_unless_it_is_named(quick, client, model, tmp_path):
    add(client, model), add(client, model), add(client, model, model_sha256="0" * 64)
    versions = read_state(model).versions
    for named, passed in (("best", None), (3, False)):
        limits = read_limits(gate_file(tmp_path, reference=named))
        found = judge(versions[2], versions[1], limits, None, lambda done, note: None, reference=versions[3])
        (check,) = [check for check in found.checks if check.name == "reference"]
        assert check.passed is passed
        assert "expected 000000000000... as registered" in check.figure


def test_after_a_retraining_the_newest_jobs_judge(client, model, trained):
    table = pd.read_csv(trained / "data" / "latest.csv")
    moments = np.sort(table["timestamp"])
    known = add(client, model, newest_job=str(moments[-200])), add(client, model, newest_job=str(moments[-20]))
    champions = [read_state(model).versions[number] for number in known]
    newer = newest_of(table, champions[0])
    assert len(newer) == (table["timestamp"] > moments[-200]).sum() >= 40
    assert newer["timestamp"].min() > moments[-200]
    # Twenty jobs tell nothing.
    assert len(newest_of(table, champions[1])) == len(table)


def newer_jobs(trained, tmp_path, newer: int) -> str:
    """The training's jobs, the first of them with newer records."""
    table = pd.read_csv(trained / "data" / "latest.csv", dtype={"ipst": str})
    newest = table["timestamp"].max()
    table.loc[: newer - 1, "timestamp"] = newest + 1 + np.arange(newer)
    table.to_csv(tmp_path / "newer.csv", index=False)
    return str(tmp_path / "newer.csv")


def test_jobs_newer_than_both_trainings_judge_instead_of_those_held_out(quick, client, model, trained, tmp_path):
    table = pd.read_csv(trained / "data" / "latest.csv")
    newest = int(table["timestamp"].max())
    # A held-out job may be newer than those of the training.
    also_newer = int((table["timestamp"][500:] > table.loc[table["split"] == "train", "timestamp"].max()).sum())
    add(client, model), add(client, model), add(client, model, newest_job=str(newest + 10_000))
    path = newer_jobs(trained, tmp_path, 500)
    found = verdict(model, 2, champion=1, data=path)
    assert {check.name for check in found.checks} >= WITHOUT_CHAMPION
    assert found.metrics["jobs_compared"] == 500 + also_newer
    with pytest.raises(InputError, match=r"newer\.csv holds 2,000 jobs, 0 of them newer than .* version 2 or 3"):
        verdict(model, 2, champion=3, data=path)
    with pytest.raises(InputError, match="39 of them newer"):
        verdict(model, 2, data=newer_jobs(trained, tmp_path, 39 - also_newer))


# -- The whole of it ---------------------------------------------------------------------------------------------------


def runs_of(client, model) -> list:
    experiment = client.get_experiment_by_name("calcloud")
    return client.search_runs([experiment.experiment_id], f"tags.promoted_model = '{model}'")


def test_a_refusal_is_written_down_and_changes_no_stage(quick, client, model, tmp_path):
    add(client, model)
    path = gate_file(tmp_path, scores={"memory": {"mae": {"max": 0.001}}})
    with pytest.raises(
        CalmlflowError, match=r"may not go to Staging: memory\.mae: 0\.\d+, expected at most 0\.001 \(run"
    ) as caught:
        promote_in_run(PromotionRequest("Staging", model=model, gate=path))
    assert "\n" not in str(caught.value)
    state = read_state(model)
    assert (state.stages, state.aliases, state.events) == ({1: "None"}, {}, [])
    (found,) = runs_of(client, model)
    assert (found.info.status, found.data.tags["gate"]) == ("FAILED", "refused")
    assert found.data.metrics["checks_failed"] == 1
    assert "| **failed** | memory.mae |" in found.data.tags["mlflow.note.content"]
    version = client.get_model_version(model, "1")
    assert version.tags["gate"] == "refused"
    assert version.tags["gate.memory.mae"].startswith("failed: ")
    assert version.tags["gate.artifacts"].startswith("passed: ")
    assert re.search(r"Refused for \*\*Staging\*\*: \d+ of 15 checks passed, 1 failed", version.description)


def test_force_goes_through_with_a_reason_and_is_seen(quick, client, model, tmp_path):
    add(client, model)
    path = gate_file(tmp_path, scores={"memory": {"mae": {"max": 0.001}}})
    with pytest.raises(InputError, match="no reason is given"):
        promote_in_run(PromotionRequest("Production", 1, model, gate=path, force=True))
    promote_in_run(PromotionRequest("Production", 1, model, gate=path, force=True, reason="the queue is full"))
    (event,) = read_state(model).events
    assert (event.forced, event.reason, event.stage) == (True, "the queue is full", "Production")
    assert [failed.partition(":")[0] for failed in event.failed] == ["memory.mae"]
    version = client.get_model_version(model, "1")
    assert (version.current_stage, version.tags["gate"]) == ("Production", "forced")
    assert "**forced**" in version.description
    found = next(found for found in runs_of(client, model) if found.info.run_id == event.run_id)
    assert (found.info.status, found.data.tags["gate"]) == ("FINISHED", "forced")


def test_a_challenger_is_held_against_an_earlier_version_too(quick, client, model):
    for _ in range(3):
        add(client, model)
    promote_in_run(PromotionRequest("Production", 1, model))
    promote_in_run(PromotionRequest("Production", 2, model))
    promote_in_run(PromotionRequest("Production", 3, model))
    newest = runs_of(client, model)[0]
    assert (newest.data.tags["champion_version"], newest.data.tags["reference_version"]) == ("2", "1")
    assert newest.data.metrics["reference_difference_memory_mae"] == 0
    checks = json.loads(Path(client.download_artifacts(newest.info.run_id, "gate.json")).read_text())
    of_reference = {check["name"] for check in checks if check["name"].startswith("reference.")}
    assert {name.replace("champion", "reference") for name in AGAINST_CHAMPION} <= of_reference


def test_shadow_answers_are_asked_for_where_a_shadow_is_set(quick, client, model, monkeypatch, tmp_path):
    add(client, model), add(client, model)
    uri = f"sqlite:///{tmp_path}/jobs.db"
    open_sql(uri, create=True).close()
    monkeypatch.setenv("CALMLFLOW_SHADOW_STAGE", "Staging")
    monkeypatch.setenv("CALMLFLOW_JOBS", uri)
    # Without a champion there is nothing to compare with.
    promote_in_run(PromotionRequest("Production", 1, model))
    assert "gate.live" not in client.get_model_version(model, "1").tags
    promote_in_run(PromotionRequest("Production", 2, model))
    assert client.get_model_version(model, "2").tags["gate.live"].startswith(f"not decided: 0 jobs of {uri} (40 ")


def test_a_promotion_is_a_run_with_every_figure(quick, client, model):
    add(client, model), add(client, model)
    promote_in_run(PromotionRequest("Production", 1, model))
    assert "2 is in Production" in promote_in_run(PromotionRequest("Production", 2, model, reason="better"))
    newest = runs_of(client, model)[0]
    assert (newest.data.tags["champion_version"], newest.data.tags["reference_version"]) == ("1", "none")
    assert newest.data.metrics["difference_memory_mae"] == 0
    assert newest.data.metrics["champion_mem_bin_accuracy"] == newest.data.metrics["challenger_mem_bin_accuracy"]
    event = read_state(model).events[-1]
    assert (event.run_id, event.before, event.reason) == (newest.info.run_id, 1, "better")
    checks = json.loads(Path(client.download_artifacts(newest.info.run_id, "gate.json")).read_text())
    assert {check["name"] for check in checks} >= WITHOUT_CHAMPION
    # 2,000 jobs hold too few of the highest rung; that stops nothing, and is told everywhere.
    undecided = {check["name"] for check in checks if check["verdict"] == "not decided"}
    assert "champion.mem_bin.recall_64g" in undecided == set(event.undecided)
    assert newest.data.metrics["checks_not_decided"] == len(undecided)
    assert f"{len(undecided)} not decided" in newest.data.tags["gate.checks"]
    version = client.get_model_version(model, "2")
    assert version.tags["gate.champion.mem_bin.recall_64g"].startswith("not decided: ")
    assert "| **not decided** | champion.mem_bin.recall_64g |" in version.description
    assert "is in Production already" in promote_in_run(PromotionRequest("Production", None, model))
    assert roll_back_to(None, "a test", model) == f"{model} version 1 is back in Production, version 2 is archived"


@pytest.mark.parametrize("text", ["x", "1.5", "-1", ""])
def test_a_version_is_a_number_or_auto(text):
    assert (parse_version("auto"), parse_version("12")) == (None, 12)
    with pytest.raises(InputError, match="expected a number from 1 to 2147483647, or auto"):
        parse_version(text)
