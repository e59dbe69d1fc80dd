"""`mlflow models serve` as anybody runs it: every form of request, every way to be wrong, equal jobs answered alike."""

import copy
import json
import math
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

# Benchmarks are no part of the installed package.
from benchmarks.serving import serving
from calmlflow.hst.features import OPTIONAL_KEYS, job_features
from calmlflow.predictor import Bundle
from calmlflow.predictor.answers import fallback_policy
from calmlflow.predictor.batch.answers import answer_table
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.explain import as_text, explain
from calmlflow.predictor.manifest import write_manifest
from calmlflow.predictor.predictor import Serving
from calmlflow.registry import served
from calmlflow.registry.package import write_bundle
from calmlflow.settings import NETWORKS
from tests.samples.predictor_samples import write_network
from tests.samples.serving_samples import (
    JOBS,
    MOSAIC,
    SEEN,
    SPARSE,
    UNLIKE,
    Scorer,
    answer_of,
    close,
    free_port,
    outside,
    publish,
    write_models,
)


@pytest.fixture(scope="module")
def published(server, tmp_path_factory):
    return publish(server, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def scorer(server, published, tmp_path_factory):
    """The version, served from the registry by two workers, out of reach of the project."""
    folder, port = tmp_path_factory.mktemp("outside"), free_port()
    options = ["--env-manager", "local", "--workers", "2"]
    with serving(published.uri, port, outside(server, folder), options, folder):
        yield Scorer(port)


def full(jobs):
    """With every key in every row."""
    return [{name: job.get(name) for name in dict.fromkeys(key for job in jobs for key in job)} for job in jobs]


FORMS = {
    "dataframe_split": lambda jobs: {
        "dataframe_split": {"columns": list(full(jobs)[0]), "data": [list(job.values()) for job in full(jobs)]}
    },
    "dataframe_records": lambda jobs: {"dataframe_records": jobs},
    "instances": lambda jobs: {"instances": full(jobs)},
    "inputs, columns": lambda jobs: {"inputs": {name: [job[name] for job in full(jobs)] for name in full(jobs)[0]}},
}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


# -- Right requests ---------------------------------------------------------------------------------------------------


@form
def test_rows_in_every_form_that_mlflow_knows_are_answered_in_order(scorer, published, form):
    close(scorer.answers(form(JOBS)), published.expected(*JOBS))
    close(scorer.answers(form(JOBS[::-1])), published.expected(*JOBS[::-1]))


@form
@pytest.mark.parametrize("nothing", [None, math.nan, "", "NaN"], ids=["null", "NaN", "empty", "text NaN"])
def test_nothing_in_an_optional_key_is_as_if_it_were_absent(scorer, published, form, nothing):
    close(scorer.answers(form([{**SPARSE, **dict.fromkeys(OPTIONAL_KEYS, nothing)}])), published.expected(SPARSE))


@form
@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("n_files", 7.0, 7),
        ("n_files", "7", 7),
        ("total_mb", "11.1", 11.1),
        ("SUBARRAY", True, "True"),
        ("CRSPLIT", 1, "1"),
    ],
)
def test_values_may_be_of_another_type(scorer, published, form, key, value, meant):
    close(scorer.answers(form([{**SPARSE, key: value}])), published.expected({**SPARSE, key: meant}))


def test_no_rows_no_answers(scorer):
    assert scorer.answers({"dataframe_split": {"columns": list(SPARSE), "data": []}}) == []


def test_many_clients_of_two_workers_get_their_own_answers(scorer, published):
    jobs = [{**SPARSE, "n_files": 1 + number % 40, "total_mb": float(number % 7)} for number in range(200)]
    with ThreadPoolExecutor(8) as clients:
        found = clients.map(lambda job: scorer.answers({"dataframe_records": [job]})[0], jobs)
        close(found, published.expected(*jobs))


# -- Wrong requests ---------------------------------------------------------------------------------------------------

REFUSED = [
    ({"n_files": 0}, "j8c601020: n_files is '0.0'; expected a whole number of raw files, 1 to 1000000"),
    ({"n_files": 2.5}, "j8c601020: n_files is '2.5'; expected a whole number of raw files, 1 to 1000000"),
    ({"n_files": None}, "j8c601020: n_files is missing; expected a whole number of raw files, 1 to 1000000"),
    ({"n_files": 10**30}, "j8c601020: n_files is '1e+30'; expected a whole number of raw files, 1 to 1000000"),
    ({"total_mb": math.inf}, "j8c601020: total_mb is 'inf'; expected a number of megabytes, 0 to 1000000000"),
    ({"total_mb": None}, "j8c601020: total_mb is missing; expected a number of megabytes, 0 to 1000000000"),
    ({"ipppssoot": "no-dataset"}, "'no-dataset' is no dataset name; expected nine characters such as j8c601020"),
    ({"ipppssoot": "x8c601020"}, "dataset 'x8c601020' starts with 'x', which is no known instrument"),
]


@form
@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_row_that_breaks_a_rule_fails_the_request_with_the_reason(scorer, form, change, reason):
    for row, jobs in enumerate(([{**SEEN, **change}], [SPARSE, {**SEEN, **change}, MOSAIC]), start=1):
        status, answer = scorer.post(form(jobs))
        assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert answer["message"].rpartition("Error: ")[2].startswith(f"row {row}: {reason}")
        assert "stack_trace" not in answer
        assert "Traceback" not in answer["message"]


@form
@pytest.mark.parametrize("change", [{"n_files": "many"}, {"total_mb": "large"}], ids=str)
def test_what_is_no_number_is_refused_by_the_signature(scorer, form, change):
    status, answer = scorer.post(form([{**SEEN, **change}]))
    assert (status, answer["error_code"]) == (400, "BAD_REQUEST")
    assert "stack_trace" not in answer


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("7,11.1\noabc06090,,2", "row 2: oabc06090: n_files is missing; expected a whole number"),
        ("7,", "row 1: oabc06090: total_mb is missing; expected a number of megabytes"),
        ("1e30,2", "row 1: oabc06090: n_files is '1e+30'; expected a whole number"),
    ],
)
def test_gaps_and_huge_numbers_of_a_csv_are_named_by_row_and_key(scorer, published, cells, reason):
    status, answer = scorer.post(f"ipppssoot,n_files,total_mb\noabc06090,{cells}\n", "text/csv")
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert answer["message"].rpartition("Error: ")[2].startswith(reason)
    status, answer = scorer.post("ipppssoot,n_files,total_mb\noabc06090,7,11.1\n", "text/csv")
    close(answer["predictions"], published.expected(SPARSE))
    assert scorer.post("ipppssoot,n_files,total_mb\n", "text/csv") == (200, {"predictions": []})


@pytest.mark.parametrize("key", ["ipppssoot", "n_files", "total_mb"])
def test_a_required_key_that_is_absent_is_named(scorer, key):
    job = {name: value for name, value in SEEN.items() if name != key}
    status, answer = scorer.post({"dataframe_records": [job]})
    assert status == 400
    assert f"Model is missing inputs ['{key}']" in answer["message"]


# -- The model alone --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle on disk."""
    root = tmp_path_factory.mktemp("bundle")
    return write_bundle(write_models(root / "models"), NETWORKS, root / "bundle")


@pytest.fixture
def model(folder):
    """The model as MLflow makes it, without MLflow around it."""
    made = served.ServedBundle()
    made.load_context(SimpleNamespace(artifacts={"bundle": str(folder)}))
    return made


def answer(model, jobs) -> list[dict]:
    return model.predict(None, pd.DataFrame(jobs)).to_dict("records")


def alone(folder, jobs) -> list[dict]:
    bundle = Bundle.load(folder)
    return [answer_of(bundle, job["ipppssoot"], job) for job in jobs]


def test_every_way_to_ask_answers_by_policy_where_a_network_says_what_cannot_be_true(folder, tmp_path, caplog):
    broken = shutil.copytree(folder, tmp_path / "bundle")
    write_network(broken / "wall_reg" / "wall_reg.onnx", 1, 0, -39.0)
    write_manifest(broken)
    made = served.ServedBundle()
    made.load_context(SimpleNamespace(artifacts={"bundle": str(broken)}))
    name, features = str(SEEN["ipppssoot"]), job_features(str(SEEN["ipppssoot"]), SEEN)
    single = Serving(made.bundle, "7", "registry").answer(name, features)
    (warning,) = single["warnings"]
    assert "wall_reg gave what cannot be true" in warning
    expected = {**fallback_policy(), "warnings": [warning], "unseen": single["unseen"], "version": "7"}
    del expected["fallback"]
    assert single == expected
    assert answer(made, [SEEN]) == [{key: single[key] for key in made.bundle.answer_keys}]
    table = answer_table(
        Jobs(pa.array([name]), np.array([features]), np.array([False]), {}, {}), made.bundle
    ).to_pylist()
    assert [table[0][key] for key in ("bin_pred", "wall_pred", "kill_time", "jobs_row")] == [1, 1200, 7200, 0]
    assert "1 of 1 jobs are answered by policy, for wall_reg gave" in caplog.text
    explained = explain(single, name, features, made.bundle)
    assert "".join(warning.split()) in re.sub(r"\s", "", as_text(json.loads(json.dumps(explained, allow_nan=False))))


def test_threads_that_share_a_model_get_their_own_answers(folder, model, monkeypatch):
    monkeypatch.setattr("calmlflow.predictor.bundle.MAX_KNOWN", 20)
    different = [{**SPARSE, "n_files": number} for number in range(1, 31)]
    expected = alone(folder, different)
    asked = random.Random(1).choices(range(30), k=1500)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda number: answer(model, [different[number]])[0], asked))
    close(found, [expected[number] for number in asked])


def test_the_networks_see_each_different_job_once(model, monkeypatch):
    seen = []
    real = model.bundle.run
    monkeypatch.setattr(type(model.bundle), "run", lambda self, rows: seen.extend(rows) or real(rows))
    assert len(model.predict(None, pd.DataFrame([SEEN, SPARSE, MOSAIC, UNLIKE] * 100))) == 400
    assert sorted(seen) == sorted({job_features(job["ipppssoot"], job) for job in (SEEN, SPARSE, UNLIKE)})


def test_what_a_caller_does_to_an_answer_changes_no_other(model):
    jobs = pd.DataFrame([SEEN])
    before = model.predict(None, jobs)
    kept = copy.deepcopy(before.to_dict("list"))
    before.loc[0, "memBin"] = 77
    before["killTime"] = 1
    before.loc[0, "evidence"]["row"] = 99
    before.loc[0, "warnings"].append("no")
    assert model.predict(None, jobs).to_dict("list") == kept


@pytest.mark.parametrize("jobs", [[SEEN], [MOSAIC], JOBS, JOBS * 3], ids=["one", "mosaic", "four", "twelve"])
def test_answers_have_the_columns_and_types_that_the_signature_names(model, jobs):
    frame = pd.DataFrame(jobs, index=range(7, 7 + len(jobs)))
    found = model.predict(None, frame)
    kinds = {"memBin": "i", "probabilities": "O", "unseen": "b", "memVal": "f", "clockTime": "i", "killTime": "i"}
    kinds |= {"evidence": "O", "warnings": "O"}
    assert {name: kind.kind for name, kind in found.dtypes.items()} == kinds
    assert found.index.tolist() == list(range(len(jobs)))
    assert [len(row) for row in found["probabilities"]] == [4] * len(jobs)


CELL = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["T", "NaN", "PERFORM"])
)
ROW = st.fixed_dictionaries(
    {"ipppssoot": st.one_of(st.sampled_from(["j8c601020", "acs_8ph_01", "OABC06090"]), CELL)},
    optional=dict.fromkeys(("n_files", "total_mb", *OPTIONAL_KEYS), CELL),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=4))
def test_whatever_stands_in_a_row_is_answered_or_refused_in_a_sentence(model, rows):
    try:
        assert len(model.predict(None, pd.DataFrame(rows))) == len(rows)
    except MlflowException as error:
        assert error.error_code == "INVALID_PARAMETER_VALUE"
        assert "expected" in error.message or "no known instrument" in error.message


def test_loading_a_model_brings_its_own_code_and_onnxruntime_and_no_more(server, published, tmp_path):
    script = """
import json, sys
import mlflow.pyfunc
before = set(sys.modules)
mlflow.pyfunc.load_model(sys.argv[1]).predict({"ipppssoot": "j8c601020", "n_files": 2.0, "total_mb": 3.0})
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
print(json.dumps([name for name in sys.modules if name.startswith("calmlflow")]))
print(sys.modules["calmlflow"].__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, published.uri],
        env=outside(server, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    new, ours, file = done.stdout.splitlines()[-3:]
    heavy = {"tensorflow", "keras", "sklearn", "scipy", "matplotlib", "plotly", "boto3", "onnx", "optuna", "rich"}
    assert "onnxruntime" in json.loads(new)
    assert not heavy & set(json.loads(new))
    wings = {name.split(".")[1] for name in json.loads(ours) if "." in name}
    assert "predictor" in wings
    assert not {"jobs", "networks", "results", "registry", "runs", "tracking", "cli"} & wings
    assert str(tmp_path) not in file
    assert "/code/calmlflow/" in file
