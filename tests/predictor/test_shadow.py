"""Shadow answers: kept beside those that were given, which they neither delay nor change."""

import threading

import pytest

import calmlflow.predictor.shadow as module
from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.predictor.predictor import Serving
from calmlflow.predictor.shadow import MOST_WAITING, Shadow
from calmlflow.server.processes import wait_until
from tests.predictor.test_metrics import read
from tests.samples.predictor_samples import (
    ALIASES,
    CONTROL,
    FILES,
    NO_ALIAS,
    NOTHING,
    STAGES,
    files_of,
    http_registry,
    keep_in_cache,
    staged,
    write_bundle,
)

JOB = "jabc03020"


class Store(list):
    """Records that were kept; those of the shadow only when `go` is set."""

    def __init__(self):
        super().__init__()
        self.go, self.reached = threading.Event(), threading.Event()

    def __call__(self, record):
        if record["source"] == "shadow":
            self.reached.set()
            assert self.go.wait(30)
        self.append(record)

    def of(self, source: str) -> list[dict]:
        return [record for record in self if record["source"] == source]


@pytest.fixture
def kept():
    store = Store()
    yield store
    store.go.set()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Version 3 is in Production, version 4 in Staging."""
    monkeypatch.setattr(module, "PAUSE_S", 0)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    stages = {"Production": staged("3"), "Staging": staged("4")}
    with http_registry({STAGES: lambda query: stages[query["stages"][0]], ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", found.uri)
        found.stages = stages
        keep_in_cache(tmp_path / "cache", found.uri, "3")
        found.staging = write_bundle(tmp_path / "4", seed=4)
        found.answers[FILES] = files_of(found.staging)
        yield found


def test_the_answer_is_out_and_kept_while_the_shadow_hangs_and_then_both_are_kept(registry, kept, tmp_path):
    alone = Predictor().predict(JOB, CONTROL)
    predictor = Predictor(emit=kept, shadow="Staging")
    assert predictor.predict(JOB, CONTROL) == alone
    assert not predictor._shadow.outcomes
    assert kept.reached.wait(60)
    # It hangs now: more answers are given and kept all the same.
    for _ in range(MOST_WAITING + 5):
        assert predictor.predict(JOB, CONTROL) == alone
    assert len(kept) == len(kept.of("registry")) == MOST_WAITING + 6
    kept.go.set()
    assert wait_until(lambda: len(kept.of("shadow")) == MOST_WAITING + 1, 60)
    shadow, live = kept.of("shadow")[0], kept.of("registry")[0]
    challenger = Bundle.load(registry.staging).predict([job_features(JOB, CONTROL)])
    assert (shadow["version"], live["version"]) == ("4", "3")
    assert shadow["wall_pred"] == int(challenger["wall_pred"][0]) != live["wall_pred"]
    assert shadow["timestamp"] >= live["timestamp"]
    # No answer waits for a lock of its cache.
    assert [path.parents[1].name for path in tmp_path.rglob("4-*")] == ["shadow"]
    # Given up where too many waited.
    assert read(predictor.metrics())["calmlflow_shadow_answers_total", "kept"] == MOST_WAITING + 1


def test_a_stage_without_a_version_and_a_shadow_that_raises_cost_no_answer(registry, kept, monkeypatch, caplog):
    kept.go.set()
    registry.stages["Staging"] = NOTHING
    predictor = Predictor(emit=kept, shadow="Staging")
    assert predictor.predict(JOB, CONTROL) == Predictor().predict(JOB, CONTROL)
    outcomes = predictor._shadow.outcomes
    assert wait_until(lambda: outcomes["failed"] == 1, 60)
    # The stage is not asked again for each answer.
    asked = len(registry.queries)
    predictor.predict(JOB, CONTROL)
    assert wait_until(lambda: outcomes["failed"] == 2, 60)
    assert len(registry.queries) == asked
    registry.stages["Staging"] = staged("4")
    monkeypatch.setattr(predictor._shadow, "_next_try", 0)
    predictor.predict(JOB, CONTROL)
    assert wait_until(lambda: len(kept.of("shadow")) == 1, 60)
    monkeypatch.setattr(predictor._shadow._predictor, "serving", Serving(Bundle, "5", "registry"))
    assert predictor.predict(JOB, CONTROL)["version"] == "3"
    assert wait_until(lambda: outcomes["failed"] == 3, 60)
    assert f"no shadow answer to {JOB} (TypeError at predictor.py:" in caplog.text
    assert len(kept.of("registry")) == 4


def test_the_version_that_answered_is_no_shadow_of_itself(registry, kept):
    kept.go.set()
    registry.stages["Staging"] = staged("3")
    predictor = Predictor(emit=kept, shadow="Staging")
    predictor.predict(JOB, CONTROL)
    assert wait_until(lambda: predictor._shadow.outcomes["same"] == 1, 60)
    assert kept.of("shadow") == []


def test_without_a_place_for_records_there_is_no_shadow(registry, caplog):
    assert Predictor(shadow="Staging").predict(JOB, CONTROL)["version"] == "3"
    assert "no shadow answers of Staging, since no prediction is kept; expected emit" in caplog.text
    assert [query["stages"] for path, query in registry.queries if path == STAGES] == [["Production"]]


def test_a_thread_that_cannot_be_started_costs_no_answer_and_the_next_one_serves_both(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0)
    tried = threading.Event()

    def open_predictor():
        tried.set()
        raise CalmlflowError("the registry is away")

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    shadow = Shadow(open_predictor, lambda record: None)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        shadow.follow(JOB, job_features(JOB, CONTROL), "3")
    assert not tried.is_set()
    shadow.follow(JOB, job_features(JOB, CONTROL), "3")
    assert wait_until(lambda: shadow.outcomes["failed"] == 2, 60)
