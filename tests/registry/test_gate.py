"""The gate against the real server: every check fails alone, a refusal changes no stage, force is seen."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import Finished
from calmlflow.registry import gate
from calmlflow.registry.gate import champion_checks, judge
from calmlflow.registry.held_out import judged_jobs, new_to
from calmlflow.registry.limits import DEFAULT, Limits, read_limits
from calmlflow.registry.versions import read_state
from calmlflow.results.scores import score_predictions
from calmlflow.runs.promote import PromotionRequest, parse_version, promote_in_run, roll_back_to
from tests.registry.conftest import log_files

NETWORKS = ("mem_clf", "mem_reg", "wall_reg")
WITHOUT_CHAMPION = {
    *("artifacts", "serving", "data.schema", "data.jobs", "data.age"),
    *(f"onnx.{network}" for network in NETWORKS),
    *("mem_bin.accuracy", "mem_bin.excess_cost", "memory.mae", "memory.log_mae"),
    *("wallclock.log_mae", "wallclock.kill_time_coverage", "wallclock.kill_time_reserved"),
}
STRICT = Limits()
"""No margins."""

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


def test_nothing_of_a_version_runs_that_is_not_what_was_registered(client, model, trained, copy, tmp_path):
    known = client.get_model_version("calcloud-predictor", "1").tags
    (copy / "served.py").write_text(f"open({str(tmp_path / 'has-run')!r}, 'w')\n" + (copy / "served.py").read_text())
    files = log_files(copy, trained / "data" / "latest.csv")
    for tags in ({}, {"model_sha256": files.digest}):
        add(client, model, files.source, files.run_id, **tags)
    (failed,) = [check for check in verdict(model, 1).failed if check.name == "artifacts"]
    assert f"expected {known['model_sha256'][:12]}... as registered" in failed.figure
    assert not (tmp_path / "has-run").exists()
    # With its own digest it is what was registered, and is run.
    assert verdict(model, 2).failed == []
    assert (tmp_path / "has-run").exists()


def test_a_challenger_must_give_every_answer_that_the_champion_gives(quick, client, model):
    known = client.get_model_version("calcloud-wallclock", "1")
    client.create_model_version(
        model, known.source, known.run_id, known.tags, await_creation_for=0,
        model_id=known.source.removeprefix("models:/"),
    )  # fmt: skip
    add(client, model)
    (failed,) = verdict(model, 1, champion=2).failed
    assert (failed.name, failed.expected) == ("champion", "every answer that version 2 gives")
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
    path = gate_file(tmp_path, scores=scores, data={"max_age_days": 1, "min_jobs": 1601})
    found = verdict(model, add(client, model), limits=path)
    of_scores = {f"{target}.{score}" for target, limits in scores.items() for score in limits}
    assert {check.name for check in found.failed} == of_scores | {"data.jobs", "data.age"}
    assert all(check.expected for check in found.failed)
    assert {check.name for check in found.checks} == of_scores | {
        name for name in WITHOUT_CHAMPION if name.split(".")[0] in ("artifacts", "onnx", "serving", "data")
    }


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


# -- Against the champion: each score failing alone -------------------------------------------------------------------


def judged(jobs: int = 400) -> tuple[pd.DataFrame, dict]:
    """Jobs of bins 0, 1 and 2, and answers: nine of ten bins right, small errors but for each twentieth job."""
    generator = np.random.default_rng(3)
    bins = np.repeat([0, 1, 2, 2], jobs // 4)
    table = pd.DataFrame(
        {
            "ipst": [f"j{number:08d}" for number in range(jobs)],
            "mem_bin": bins,
            "memory": np.array([1.0, 4.0, 10.0])[bins],
            "wallclock": generator.uniform(100, 1000, jobs),
        }
    )
    said = np.where(generator.random(jobs) < 0.9, bins, (bins + 1) % 3)
    error = generator.uniform(0.5, 1.5, jobs) * np.where(far_off(jobs), 12, 1)
    answers = {
        "probabilities": np.eye(len(LADDER))[said] * 0.96 + 0.01,
        "bin_pred": said,
        "mem_pred": table["memory"].to_numpy() + 0.05 * error,
        "wall_pred": table["wallclock"].to_numpy() + 10 * error,
        "kill_time": np.full(jobs, 990),
    }
    return table, answers


def far_off(jobs: int) -> np.ndarray:
    return np.arange(jobs) % 20 == 0


def worse_bin(answers: dict, table: pd.DataFrame, of_bin: int) -> dict:
    """Some jobs of one bin get the bin above, and as many of the others, that were wrong, are right."""
    likeliest, needed = answers["probabilities"].argmax(axis=1), table["mem_bin"].to_numpy()
    probabilities = answers["probabilities"].copy()
    wrong = np.flatnonzero((likeliest != needed) & (needed != of_bin))
    probabilities[wrong] = np.eye(4)[needed[wrong]] * 0.96 + 0.01
    right = np.flatnonzero((likeliest == needed) & (needed == of_bin))[: len(wrong)]
    probabilities[right] = np.roll(probabilities[right], 1, axis=1)
    return {**answers, "probabilities": probabilities}


def dearer(answers: dict, table: pd.DataFrame) -> dict:
    return {**answers, "bin_pred": np.minimum(answers["bin_pred"] + (np.arange(len(table)) % 3 == 0), 3)}


def all_worse(answers: dict, table: pd.DataFrame) -> dict:
    wrong = answers["probabilities"].copy()
    wrong[::3] = np.eye(4)[(table["mem_bin"].to_numpy()[::3] + 1) % 3] * 0.96 + 0.01
    return {**answers, "probabilities": wrong}


def errors_times(answers: dict, table: pd.DataFrame, name: str, small: float, large: float) -> dict:
    """Small errors make the mae, large ones the rmse."""
    actual = table[{"mem_pred": "memory", "wall_pred": "wallclock"}[name]].to_numpy()
    factor = np.where(far_off(len(table)), large, small)
    return {**answers, name: actual + factor * (answers[name] - actual)}


WORSE = {
    "champion.mem_bin.excess_cost": dearer,
    "champion.mem_bin.recall_16g": lambda answers, table: worse_bin(answers, table, 2),
    "champion.mem_bin.recall_2g": lambda answers, table: worse_bin(answers, table, 0),
    "champion.memory.mae": lambda answers, table: errors_times(answers, table, "mem_pred", 1.5, 0.9),
    "champion.memory.rmse": lambda answers, table: errors_times(answers, table, "mem_pred", 0.5, 1.2),
    "champion.wallclock.mae": lambda answers, table: errors_times(answers, table, "wall_pred", 1.5, 0.9),
    "champion.wallclock.rmse": lambda answers, table: errors_times(answers, table, "wall_pred", 0.5, 1.2),
    "champion.wallclock.kill_time_reserved": lambda answers, table: {**answers, "kill_time": 2 * answers["kill_time"]},
    "champion.wallclock.kill_time_coverage": lambda answers, table: answers | {"kill_time": answers["kill_time"] - 100},
}


@pytest.mark.parametrize("name", WORSE)
def test_each_score_that_is_worse_by_more_than_its_margin_fails_alone(name):
    table, answers = judged()
    worse = WORSE[name](answers, table)
    checks, metrics = champion_checks("version 1", table, worse, answers, STRICT)
    (failed,) = [check for check in checks if not check.passed]
    assert (failed.name, failed.expected) == (name, "not worse than version 1")
    # The other way round it is better, and passes.
    back, _ = champion_checks("version 1", table, answers, worse, STRICT)
    assert name not in {check.name for check in back if not check.passed}
    _, target, score = name.split(".")
    lost = abs(metrics[f"difference_{target}_{score}"])
    is_share = score in ("rmse", "mae", "kill_time_reserved")
    share = metrics[f"champion_{target}_{score}"] if is_share else 1.0
    for margin, fails in ((lost / share * 1.001, False), (lost / share * 0.999, True)):
        limits = Limits(margins={target: {score: margin}})
        checks, _ = champion_checks("v", table, worse, answers, limits)
        assert [check.name for check in checks if not check.passed] == [name] * fails


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


def test_a_worse_classifier_fails_by_its_accuracy():
    table, answers = judged()
    checks, _ = champion_checks("v", table, all_worse(answers, table), answers, STRICT)
    failed = {check.name for check in checks if not check.passed}
    assert "champion.mem_bin.accuracy" in failed
    assert "champion.memory.rmse" not in failed


def test_what_may_be_chance_passes():
    table, answers = judged()
    probabilities = answers["probabilities"].copy()
    right = np.flatnonzero(probabilities.argmax(axis=1) == table["mem_bin"])[:2]
    probabilities[right] = np.roll(probabilities[right], 1, axis=1)
    checks, metrics = champion_checks("v", table, {**answers, "probabilities": probabilities}, answers, STRICT)
    assert all(check.passed for check in checks)
    assert metrics["difference_mem_bin_accuracy"] == pytest.approx(-2 / 400)
    assert metrics["difference_low_mem_bin_accuracy"] < -2 / 400 < metrics["difference_high_mem_bin_accuracy"] + 1e-12


def test_a_bin_of_a_few_jobs_decides_nothing():
    table, answers = judged()
    table.loc[[0, 1], "mem_bin"] = 3
    right = answers["probabilities"].copy()
    right[[0, 1]] = np.eye(4)[3] * 0.96 + 0.01
    checks, _ = champion_checks("v", table, answers, {**answers, "probabilities": right}, STRICT)
    (recall,) = [check for check in checks if check.name == "champion.mem_bin.recall_64g"]
    assert recall.passed
    assert "too few jobs (2) to tell" in recall.figure


# -- Jobs that are newer than both trainings ---------------------------------------------------------------------------


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
    assert "Refused for **Staging**: 1 of 9 checks failed." in version.description


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


def test_a_promotion_is_a_run_with_every_figure(quick, client, model):
    add(client, model), add(client, model)
    promote_in_run(PromotionRequest("Production", 1, model))
    assert "2 is in Production" in promote_in_run(PromotionRequest("Production", 2, model, reason="better"))
    newest = runs_of(client, model)[0]
    assert newest.data.tags["champion_version"] == "1"
    assert newest.data.metrics["difference_memory_mae"] == 0
    assert newest.data.metrics["champion_mem_bin_accuracy"] == newest.data.metrics["challenger_mem_bin_accuracy"]
    event = read_state(model).events[-1]
    assert (event.run_id, event.before, event.reason) == (newest.info.run_id, 1, "better")
    checks = json.loads(Path(client.download_artifacts(newest.info.run_id, "gate.json")).read_text())
    assert {check["name"] for check in checks} >= WITHOUT_CHAMPION
    assert "is in Production already" in promote_in_run(PromotionRequest("Production", None, model))
    assert roll_back_to(None, "a test", model) == f"{model} version 1 is back in Production, version 2 is archived"


@pytest.mark.parametrize("text", ["x", "1.5", "-1", ""])
def test_a_version_is_a_number_or_auto(text):
    assert (parse_version("auto"), parse_version("12")) == (None, 12)
    with pytest.raises(InputError, match="expected a number, or auto"):
        parse_version(text)
