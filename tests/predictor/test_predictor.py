"""An answer every time: from the registry's version, or else from the last good one."""

import shutil
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.registry.history import Event
from tests.predictor.test_metrics import read
from tests.samples.predictor_samples import (
    ALIASES,
    CONTROL,
    FILES,
    FIVE,
    NO_ALIAS,
    NOTHING,
    STAGES,
    VERSION,
    aliased,
    files_of,
    http_registry,
    keep_in_cache,
    staged,
    write_bundle,
)

JOB = "jabc03020"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A registry whose version 3 is in Production, and in the cache."""
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    # A version that is not on disk is asked for through MLflow, which would try for long.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        found.folder = keep_in_cache(tmp_path / "cache", found.uri, "3")
        yield found
    if "mlflow" in sys.modules:
        # A thread that was given up may be importing it still: wait for its end.
        import mlflow

        mlflow.set_tracking_uri(None)


def test_the_answer_is_that_of_the_bundle_in_the_stage(server):
    predictor = Predictor()
    answer = predictor.predict(JOB, CONTROL)
    found = Bundle.load(server.folder).predict([job_features(JOB, CONTROL)])
    assert answer["memBin"] == found["bin_pred"][0]
    assert answer["memVal"] == round(float(found["mem_pred"][0]), 2)
    assert answer["clockTime"] == int(found["wall_pred"][0])
    assert answer["killTime"] == found["kill_time"][0]
    assert answer["probabilities"] == pytest.approx(found["probabilities"][0].tolist(), abs=1e-6)
    assert (answer["version"], answer["source"]) == ("3", "registry")
    assert (predictor.serving.version, predictor.serving.source) == ("3", "registry")


def test_the_stage_is_asked_by_its_name(server):
    Predictor("staging")
    assert server.queries[-1][1]["stages"] == ["Staging"]
    with pytest.raises(InputError, match=r"'a b' names no version; expected a stage \(Staging, Production, Archived\)"):
        Predictor("a b")


def test_a_deployment_can_be_pinned_to_a_version(server):
    server.answers = {VERSION: aliased("3"), STAGES: staged("4")}
    assert Predictor("3").serving.version == "3"
    assert server.queries[0] == (VERSION, {"name": ["calcloud-predictor"], "version": ["3"]})
    # Still there when the registry is not.
    server.answers.clear()
    pinned = Predictor("3")
    assert (pinned.serving.version, pinned.serving.source) == ("3", "cache")
    with pytest.raises(CalmlflowError):
        Predictor("4")


def test_a_registry_that_is_named_comes_before_the_environment(server, monkeypatch, ports):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports[0]}")
    assert Predictor(registry_uri=server.uri).serving.source == "registry"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", server.uri)
    assert Predictor().serving.source == "registry"


@pytest.mark.parametrize("value", ["abc", "0", "-1", "nan", "1e10"])
def test_a_wrong_timeout_is_no_registry_out_of_reach(server, monkeypatch, value):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", value)
    with pytest.raises(InputError, match="CALMLFLOW_TIMEOUT is"):
        Predictor(policy_fallback=True)


@pytest.mark.parametrize("name", ["acs_8ph_01", "SKYCELL-p0797x14y06"])
def test_a_mosaic_needs_no_control_file(server, name):
    answer = Predictor().predict(name, {})
    assert (answer["memBin"], answer["memVal"], answer["clockTime"], answer["killTime"]) == (1, 7.16, 43_200, 259_200)
    assert (answer["probabilities"], answer["version"], answer["source"]) == ([0, 1, 0, 0], None, "policy")


def test_a_switch_that_is_misspelt_or_missing_is_told_in_the_answer(server):
    warnings = Predictor().predict(JOB, {**CONTROL, "DRIZCORR": "PERFROM", "SUBARRAY": ""})["warnings"]
    assert [text for text in warnings if "DRIZCORR is 'PERFROM' and counts as 0" in text]
    assert [text for text in warnings if "SUBARRAY is missing and counts as 0" in text]


@pytest.mark.parametrize(
    ("name", "keys", "words"), [("xabc03020", CONTROL, "'x'"), (JOB, [("n_files", 1)], "keys are a list")]
)
def test_a_job_that_breaks_a_rule_is_named(server, name, keys, words):
    with pytest.raises(InputError, match=words):
        Predictor().predict(name, keys)


def test_a_version_for_another_ladder_is_told_once(server, tmp_path, caplog):
    server.answers |= {STAGES: staged("4"), FILES: files_of(write_bundle(tmp_path / "five", ladder=FIVE))}
    predictor = Predictor(refresh=0)
    predictor.look(5)
    assert len(predictor.predict(JOB, CONTROL)["probabilities"]) == 5
    assert caplog.text.count("version 4 answers with bins of ladder five (2g 1.792 GB, 4g 3.584 GB, ") == 1


def test_metrics_tell_what_was_answered_and_by_which_version(server):
    predictor = Predictor()
    predictor.predict(JOB, CONTROL), predictor.predict("acs_8ph_01", {})
    page = predictor.serve_metrics(0)
    with page, urllib.request.urlopen(f"http://127.0.0.1:{page.server_port}/metrics", timeout=20) as found:
        text = found.read().decode()
        page.shutdown()
    assert text == predictor.metrics()
    samples = read(text)
    assert samples["calmlflow_predictor_info", "Production", "3", "registry"] == 1
    assert samples["calmlflow_answers_total", "Production", "registry"] == 1
    assert samples["calmlflow_answers_total", "Production", "policy"] == 1
    assert samples["calmlflow_answer_milliseconds_count", "Production"] == 2


# -- A predictor that goes on -----------------------------------------------------------------------------------------


def slowly(answer, delay_s):
    """The same answer, later."""

    def late(query):
        time.sleep(delay_s)
        return answer(query) if callable(answer) else answer

    return late


def event(stage: str) -> str:
    """The tag of a promotion to a stage."""
    return Event(2, "promotion", 4, stage, 3, "operator", "2026-01-01T00:00:00+00:00").to_json()


def wait_until(condition, seconds=20):
    """Wait for what another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def publish(server, tmp_path, version, seed):
    """Put another version in the stage, with its files on the server; gives the clock time that it answers."""
    bundle = write_bundle(tmp_path / version, seed)
    server.answers[FILES] = files_of(bundle)
    server.answers[STAGES] = staged(version)
    return int(Bundle.load(bundle).predict([job_features(JOB, CONTROL)])["wall_pred"][0])


def test_new_versions_take_over_in_the_background_and_each_thread_gets_whole_answers(server, tmp_path):
    predictor = Predictor(refresh=0)
    clocks = {"3": predictor.predict(JOB, CONTROL)["clockTime"]}
    over = threading.Event()

    def ask():
        found = set()
        while not over.wait(0.002):
            answer = predictor.predict(JOB, CONTROL)
            found.add((answer["version"], answer["clockTime"]))
        return found

    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(ask) for _ in range(16)]
        try:
            for version in "45":
                clocks[version] = publish(server, tmp_path, version, seed=int(version))
                wait_until(lambda expected=version: predictor.serving.version == expected)
        finally:
            over.set()
    assert set().union(*(each.result() for each in asked)) <= set(clocks.items())
    assert len(set(clocks.values())) == 3


def test_the_registry_is_asked_at_the_interval_and_the_same_version_not_read_again(server):
    predictor = Predictor(refresh=3600)
    server.queries.clear()
    predictor.predict(JOB, CONTROL)
    assert server.queries == []
    predictor = Predictor(refresh=0)
    bundle = predictor.serving.bundle
    shutil.rmtree(server.folder)
    asked = len(server.queries)
    wait_until(lambda: predictor.predict(JOB, CONTROL) and len(server.queries) > asked + 1)
    assert predictor.serving.bundle is bundle


@pytest.mark.parametrize("answer", [(401, b""), NOTHING, staged("9")])
def test_a_running_predictor_goes_on_with_what_it_has_and_comes_back(server, caplog, answer):
    predictor = Predictor(refresh=0)
    expected = predictor.predict(JOB, CONTROL)
    server.answers[STAGES] = answer
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "cache")
    assert predictor.predict(JOB, CONTROL) == {**expected, "source": "cache"}
    assert "answering with" in caplog.text
    server.answers[STAGES] = staged("3")
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "registry")


def test_a_slow_registry_costs_a_running_predictor_no_new_version(server, tmp_path, monkeypatch):
    predictor = Predictor(refresh=0)
    publish(server, tmp_path, "4", seed=4)
    # Longer than a caller would wait, for each request.
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    for path in (STAGES, FILES):
        server.answers[path] = slowly(server.answers[path], 0.2)
    server.connections.clear()
    wait_until(lambda: predictor.predict(JOB, CONTROL)["version"] == "4")
    # One for all files.
    assert len(server.connections) < 4


@pytest.mark.parametrize(
    ("tags", "count"),
    [
        ({}, 1),
        ({"calmlflow.history.000002": event("Staging"), "calmlflow.planned": ""}, 1),
        ({"calmlflow.history.000002": event("Production")}, 0),
        # A promotion that is being made.
        ({"calmlflow.planned": event("Production")}, 0),
    ],
)
def test_a_version_that_was_moved_without_the_gate_answers_and_is_told_once(server, tmp_path, caplog, tags, count):
    publish(server, tmp_path, "4", seed=4)
    server.answers[STAGES] = staged("4", tags)
    for _ in range(2):
        assert Predictor().serving.version == "4"
    assert caplog.text.count("version 4 was moved to Production without the gate") == count


def test_a_bundle_that_is_not_the_registered_one_answers_nowhere(server, tmp_path, caplog):
    predictor = Predictor(refresh=0)
    publish(server, tmp_path, "4", seed=4)
    server.answers[STAGES] = staged("4", {"bundle_sha256": "0" * 64})
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "cache")
    assert predictor.predict(JOB, CONTROL)["version"] == "3"
    assert "bundle.json of version 4 has the SHA-256" in caplog.text


def test_of_those_who_start_together_with_a_slow_artifact_store_one_fetches(server, tmp_path, monkeypatch):
    shutil.rmtree(server.folder.parent)
    publish(server, tmp_path, "4", seed=4)
    server.answers[FILES] = slowly(server.answers[FILES], 0.3)
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "1")

    def start(number):
        began = time.monotonic()
        return Predictor(policy_fallback=True).serving.source, time.monotonic() - began

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(start, range(8)))
    asked = [query["path"][0] for path, query in server.queries if path == FILES]
    # Whoever comes to the lock in the last moment may ask for the list of files again.
    asked = [path for path in asked if not path.endswith("bundle.json")]
    assert {source for source, _ in found} == {"policy"}
    assert max(seconds for _, seconds in found) < 1.5
    assert len(asked) == len(set(asked)) <= 3
    # The next goes on where these were stopped.
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "20")
    assert Predictor().serving.source == "registry"


def test_a_thread_that_cannot_be_started_costs_no_answer(server, monkeypatch, caplog):
    predictor = Predictor(refresh=0)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        assert predictor.predict(JOB, CONTROL)["version"] == "3"
    assert "must wait (can't start new thread)" in caplog.text
    server.answers[STAGES] = 500, b"oops"
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "cache")


def test_a_child_that_was_forked_during_a_check_looks_for_itself(server, monkeypatch):
    predictor = Predictor(refresh=0)
    monkeypatch.setattr("calmlflow.predictor.predictor.RETRY_S", 0.05)
    with monkeypatch.context() as patch:
        # As a fork in the middle of a check leaves it: begun, in a thread that is not there.
        patch.setattr("threading.Thread.start", lambda thread: None)
        predictor.predict(JOB, CONTROL)
    server.answers[STAGES] = 500, b"oops"
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "cache")


def test_a_bug_costs_no_answer(server, monkeypatch, caplog):
    predictor = Predictor(refresh=0)
    monkeypatch.setattr("calmlflow.predictor.predictor.resolve_stage", lambda *words: 1 / 0)
    wait_until(lambda: predictor.predict(JOB, CONTROL) and "ZeroDivisionError" in caplog.text)
    assert predictor.predict(JOB, CONTROL)["version"] == "3"
    # At the start too.
    assert Predictor().predict(JOB, CONTROL)["source"] == "cache"


@pytest.mark.parametrize("refresh", [-1, float("nan")])
def test_a_refresh_that_is_none_is_refused(server, refresh):
    with pytest.raises(InputError, match=r"refresh is .*; expected seconds"):
        Predictor(refresh=refresh)


# -- No bundle at all, and one that an image brings -------------------------------------------------------------------


@pytest.mark.parametrize("answer", [(500, b"oops"), NOTHING])
def test_the_policy_answers_where_it_may_and_is_marked(server, tmp_path, caplog, answer):
    shutil.rmtree(server.folder)
    server.answers[STAGES] = answer
    predictor = Predictor(policy_fallback=True, refresh=0)
    answer = predictor.predict(JOB, CONTROL)
    assert (answer["memBin"], answer["clockTime"], answer["killTime"]) == (1, 20 * 60, 20 * 60 * 6)
    assert (answer["source"], answer["version"], answer["fallback"]) == ("policy", None, True)
    assert "answering by policy" in caplog.text
    # Who asks for nonsense is told, policy or not.
    with pytest.raises(InputError, match="n_files is missing"):
        predictor.predict(JOB, {})
    publish(server, tmp_path, "4", seed=4)
    wait_until(lambda: predictor.predict(JOB, CONTROL)["version"] == "4")
    assert "fallback" not in predictor.predict(JOB, CONTROL)


@pytest.fixture
def baked(server, tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "baked", seed=7)
    (folder / "version.json").write_text('{"version": "7"}')
    monkeypatch.setenv("CALMLFLOW_BUNDLE", str(folder))
    shutil.rmtree(server.folder)
    return folder


def test_a_bundle_of_the_image_answers_without_a_registry(baked, server, monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path / "none"))
    answer = Predictor(refresh=0).predict(JOB, CONTROL)
    assert (answer["version"], answer["source"]) == ("7", "cache")
    assert server.queries == []
    assert caplog.text == ""


def test_the_image_never_answers_for_the_registrys_version(baked, server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    # A full disk: what is fetched is in memory only.
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "file" / "cache"))
    publish(server, tmp_path, "4", seed=4)
    predictor = Predictor(refresh=0)
    expected = predictor.predict(JOB, CONTROL)
    server.answers[STAGES] = 500, b"oops"
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "cache")
    server.answers[STAGES] = staged("4")
    wait_until(lambda: predictor.predict(JOB, CONTROL)["source"] == "registry")
    assert predictor.predict(JOB, CONTROL) == expected


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_an_image_without_a_version_is_told(baked, server, content):
    server.answers[STAGES] = 500, b"oops"
    (baked / "version.json").write_text(content)
    with pytest.raises(InputError, match=r"version\.json cannot be read; expected the version"):
        Predictor()


def test_an_answer_that_was_given_before_is_the_callers_own(server, monkeypatch):
    predictor = Predictor()
    first = predictor.predict(JOB, CONTROL)
    expected = {**first, "probabilities": [*first["probabilities"]]}
    first["memBin"] = 99
    first["probabilities"].clear()
    monkeypatch.setattr(Bundle, "run", lambda *words: 1 / 0)
    assert predictor.predict(JOB, CONTROL) == expected
    # Other features, another answer.
    with pytest.raises(ZeroDivisionError):
        predictor.predict(JOB, {**CONTROL, "n_files": "18"})


def test_a_failing_emitter_costs_no_answer(server, caplog):
    def refuse(record):
        raise OSError("no room")

    assert Predictor(emit=refuse).predict(JOB, CONTROL)["version"] == "3"
    assert f"the prediction of {JOB} was not kept (no room)" in caplog.text
