"""The main job through the real server: train, log to S3, register, promote by stage, predict by stage, serve."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.samples.commands import FAST, ROOT, client, environment, mlflow_run, run, runs_named

MODELS = ("calcloud-mem-bin", "calcloud-memory", "calcloud-wallclock", "calcloud-predictor")
# Control files of every shape that the instruments give; the last ones have keys left out.
CONTROLS = {
    "iabc01xyq": "n_files=2\ntotal_mb=4.1\nDETECTOR=UVIS\nSUBARRAY=False\nDRIZCORR=OMIT\nPCTECORR=OMIT\nCRSPLIT=1",
    "ibcd02010": "n_files=5\ntotal_mb=66.2\nDETECTOR=IR\nSUBARRAY=False\nDRIZCORR=PERFORM",
    "jabc03020": "n_files=17\ntotal_mb=9.6\nDETECTOR=SBC\nSUBARRAY=False\nDRIZCORR=PERFORM\nPCTECORR=OMIT",
    "jbcd04010": "n_files=5\ntotal_mb=171.7\nDETECTOR=WFC\nSUBARRAY=F\nDRIZCORR=PERFORM\nPCTECORR=PERFORM\nCRSPLIT=1",
    "labc05010": "n_files=3\ntotal_mb=2.3\nDETECTOR=NUV\nSUBARRAY=True",
    "oabc06090": "n_files=7\ntotal_mb=11.1\nDETECTOR=NUV-MAMA\nSUBARRAY=False\n",
}
ANSWER_KEYS = ["memBin", "probabilities", "unseen", "memVal", "clockTime", "killTime", "version", "source"]


def test_main_is_one_parent_run_with_three_children(server, trained):
    (parent,) = runs_named(server, "main")
    children = [runs_named(server, name)[0] for name in ("mem_bin", "memory", "wallclock")]
    assert parent.info.status == "FINISHED"
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["epochs"] in ("150", "100")
        assert child.data.params["learning_rate"]
    for name in ("data", "seed", "test_size", "n_train", "n_test", "version_tensorflow", "git_commit"):
        assert parent.data.params[name], name
    assert parent.data.params["data"] == "sample:2000"
    assert sum(int(parent.data.params[part]) for part in ("n_train", "n_test")) == 2000
    for metric in (
        "test_mem_bin_accuracy",
        "floor_mem_bin_accuracy",
        "test_memory_rmse",
        "test_wallclock_kill_time_coverage",
    ):
        assert metric in parent.data.metrics
    assert {found.tags[0].value for found in parent.inputs.dataset_inputs} == {"training", "testing"}


def test_every_epoch_is_a_point_of_each_curve(server, trained):
    (child,) = runs_named(server, "mem_bin")
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        history = client(server).get_metric_history(child.info.run_id, name)
        assert sorted(point.step for point in history) == list(range(150))
    losses = sorted((point.step, point.value) for point in client(server).get_metric_history(child.info.run_id, "loss"))
    assert losses[-1][1] < losses[0][1] / 2


def test_artifacts_are_the_tree(server, trained, tracking, s3, tmp_path):
    import mlflow

    (parent,) = runs_named(server, "main")
    copy = Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, dst_path=str(tmp_path)))
    on_disk = {path.relative_to(trained): path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    as_artifacts = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert as_artifacts == on_disk
    assert {path.as_posix() for path in on_disk} >= {
        "data/latest.csv",
        "models/tx_data.json",
        *(f"models/{name}/{name}.{kind}" for name in ("mem_clf", "mem_reg", "wall_reg") for kind in ("keras", "onnx")),
        *(f"results/{target}/history.npz" for target in ("mem_bin", "memory", "wallclock")),
        "report.html",
    }
    assert (trained / "report.html").stat().st_size < 6_000_000
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="calcloud-artifacts")["Contents"]]
    assert any(key.endswith(f"{parent.info.run_id}/artifacts/data/latest.csv") for key in keys)


def test_results_read_back_without_tensorflow(trained):
    code = f"""
import sys
from calmlflow.results.files import read_results
folder = {str(trained / "results")!r}
results = [read_results(folder + "/" + target, target) for target in ("mem_bin", "memory", "wallclock")]
print(len(results[0].y_scores), *(len(found.predictions) for found in results[1:]), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    first, *others, heavy = done.stdout.split()
    assert int(first) > 350
    assert (others, heavy) == ([first, first], "False"), done.stderr


def test_latest_csv_holds_every_job(trained):
    import pandas as pd

    table = pd.read_csv(trained / "data" / "latest.csv")
    assert len(table) == 2000
    assert table.notna().all(axis=None)
    assert set(table["split"]) == {"train", "test"}
    assert set(table.columns) >= {"ipst", "memory", "bin_pred", "mem_pred", "wall_pred", "wc_mean", "wc_std", "wc_err"}


def test_registered_models_carry_signature_example_and_no_tensorflow(server, trained, tracking):
    import mlflow

    for model in MODELS:
        info = mlflow.models.get_model_info(f"models:/{model}/1")
        assert info.signature.inputs.input_names()[:3] == ["ipppssoot", "n_files", "total_mb"]
        assert info.signature.inputs.required_input_names() == ["ipppssoot", "n_files", "total_mb"]
        assert info.saved_input_example_info
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/1/requirements.txt"))
        requirements = folder.read_text()
        assert "onnxruntime==" in requirements
        assert "tensorflow" not in requirements


def predict(server, tmp_path: Path, dataset: str, text: str, **more: str) -> subprocess.CompletedProcess[str]:
    control = tmp_path / f"{dataset}.txt"
    control.write_text(text)
    return run(server, "calmlflow", "predict", dataset, "--control", str(control), **more)


def test_the_command_prints_one_line_of_json(server, trained, tmp_path):
    for dataset, text in list(CONTROLS.items())[:2]:
        done = predict(server, tmp_path, dataset, text)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        answer = json.loads(line)
        assert list(answer) == ANSWER_KEYS
        assert (answer["version"], answer["source"]) == ("1", "registry")
        assert answer["memBin"] in range(4)
        assert isinstance(answer["clockTime"], int)
        assert 60 <= answer["killTime"] <= 172_800
        assert round(answer["memVal"], 2) == answer["memVal"]


def test_a_warm_answer_loads_no_heavy_library(server, trained, tmp_path):
    code = """
import sys
from calmlflow.predictor import Predictor
print(Predictor().predict("jabc03020", {"n_files": "17", "total_mb": "9.6"})["source"])
print(*{"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib"} & set(sys.modules))
"""
    predict(server, tmp_path, *next(iter(CONTROLS.items())))
    done = run(server, sys.executable, "-c", code)
    assert done.stdout.splitlines() == ["registry", ""], done.stderr


def test_the_last_bundle_answers_when_the_registry_does_not(server, trained, tmp_path):
    from calmlflow.predictor.cache import Cache

    dataset, text = list(CONTROLS.items())[2]
    known = json.loads(predict(server, tmp_path, dataset, text).stdout)
    # The cache belongs to a registry's address; this one's moves to an address where nobody listens.
    nowhere = "http://127.0.0.1:9"
    root = server.home.parent / "cache"
    Cache(server.tracking_uri, root).folder.rename(Cache(nowhere, root).folder)
    try:
        done = predict(server, tmp_path, dataset, text, MLFLOW_TRACKING_URI=nowhere)
    finally:
        Cache(nowhere, root).folder.rename(Cache(server.tracking_uri, root).folder)
    assert json.loads(done.stdout) == {**known, "source": "cache"}
    assert "no MLflow server answers" in done.stderr


@pytest.fixture(scope="module")
def endpoint(server, trained) -> str:
    """`mlflow models serve` of the version in Production."""
    from tests.conftest import free_ports

    (port,) = free_ports(1)
    command = ["mlflow", "models", "serve", "-m", "models:/calcloud-predictor/Production", "--env-manager", "local"]
    with (server.home.parent / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=server.home.parent, env=environment(server), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        from calmlflow.server.processes import wait_until

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").status == 200
            except OSError:
                return process.poll() is not None

        assert wait_until(answers, 90)
        assert process.poll() is None, Path(log.name).read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def ask(endpoint: str, payload: dict) -> tuple[int, dict]:
    request = urllib.request.Request(endpoint, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_served_model_answers_as_the_predictor_does(server, trained, endpoint, tracking, monkeypatch, tmp_path):
    from calmlflow.hst.features import parse_control
    from calmlflow.predictor import Predictor

    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    predictor = Predictor()
    rows = []
    for dataset, text in CONTROLS.items():
        keys = parse_control(text)
        row = {"ipppssoot": dataset, **keys, "n_files": int(keys["n_files"]), "total_mb": float(keys["total_mb"])}
        rows.append(row)
        # One row alone, so that absent keys are absent columns.
        status, answer = ask(endpoint, {"dataframe_records": [row]})
        assert status == 200, answer
        expected = predictor.predict(dataset, keys)
        assert answer["predictions"] == [{key: expected[key] for key in ANSWER_KEYS[:-2]}]
    status, together = ask(endpoint, {"dataframe_records": [{key: row.get(key) for key in rows[0]} for row in rows]})
    assert status == 200
    assert len(together["predictions"]) == len(rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"ipppssoot": "xabc01xyq"}, "'x'"), ({"n_files": 0}, "n_files"), ({"total_mb": -1.0}, "total_mb")],
)
def test_a_bad_row_is_refused_with_the_reason(endpoint, change, words):
    status, answer = ask(
        endpoint, {"dataframe_records": [{"ipppssoot": "iabc01xyq", "n_files": 2, "total_mb": 4.1, **change}]}
    )
    assert status == 400
    assert words in answer["message"]


def test_lambda_reads_the_control_file_from_s3(server, trained, tracking, s3, monkeypatch, tmp_path):
    from calmlflow.predictor import aws_lambda

    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    aws_lambda._kept_predictor.cache_clear()
    dataset, text = list(CONTROLS.items())[3]
    key = f"control/{dataset}/{dataset}_MemModelFeatures.txt"
    s3.put_object(Bucket="calcloud-processing", Key=key, Body=text.encode())
    answer = aws_lambda.handler({"Bucket": "calcloud-processing", "Key": key, "Ipppssoot": dataset})
    assert list(answer) == ANSWER_KEYS
    assert aws_lambda.handler({"Bucket": "calcloud-processing", "Dataset": dataset}) == answer
    mosaic = aws_lambda.handler({"Bucket": "calcloud-processing", "Key": "any", "Ipppssoot": "acs_8ph_01"})
    assert (mosaic["memBin"], mosaic["clockTime"], mosaic["killTime"], mosaic["source"]) == (1, 43200, 259200, "policy")
    gone = aws_lambda.handler({"Bucket": "calcloud-processing", "Ipppssoot": "jzzz99010"})
    assert "control/jzzz99010/jzzz99010_MemModelFeatures.txt" in gone["errorMessage"]
    aws_lambda._kept_predictor.cache_clear()


def test_one_network_alone(server, trained, tmp_path):
    done = mlflow_run(server, "wallclock", data="sample:400", output=tmp_path, config=FAST, register="false")
    assert done.returncode == 0, done.stderr[-2000:]
    (tree,) = tmp_path.iterdir()
    assert sorted(path.name for path in (tree / "results").iterdir()) == ["wallclock"]
    assert (tree / "models" / "wall_reg" / "wall_reg.onnx").is_file()
    assert len(client(server).search_model_versions("name = 'calcloud-wallclock'")) == 1


def test_batch_prediction_keeps_order_and_names_bad_rows(server, trained, tmp_path):
    import pandas as pd

    rows = pd.DataFrame(
        {"ipppssoot": ["iabc01xyq", "zabc01xyq", "oabc06090"], "n_files": [2, 2, 7], "total_mb": [4.1, 4.1, 11.1]}
    )
    rows.to_csv(tmp_path / "in.csv", index=False)
    done = mlflow_run(server, "predict", data=tmp_path / "in.csv", output=tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr[-2000:]
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["ipst"].tolist() == ["iabc01xyq", "oabc06090"]
    assert list(found) == [
        "ipst", "bin_pred", "mem_pred", "wall_pred", "kill_time", "prob_2g", "prob_8g", "prob_16g", "prob_64g",
    ]  # fmt: skip
    errors = pd.read_csv(tmp_path / "out.errors.csv")
    assert errors["ipppssoot"].tolist() == ["zabc01xyq"]
    assert "'z'" in errors["reason"][0]


def test_a_training_is_compared_with_the_version_in_production(server, trained):
    done = run(server, "python", "-m", "entrypoints.compare", "--this", str(trained))
    assert done.returncode == 0, done.stderr[-2000:]
    # Production holds this very training, so every paired difference is nothing.
    newest = runs_named(server, "compare")[0]
    differences = {name: value for name, value in newest.data.metrics.items() if name.startswith("difference_")}
    assert "difference_mem_bin_accuracy" in differences
    assert set(differences.values()) == {0.0}
    assert newest.data.metrics["jobs_compared_memory"] > 350


def test_a_training_goes_to_s3_and_comes_back_the_same(server, trained, tmp_path):
    sent = run(
        server, "python", "-m", "entrypoints.ship", "--tree", str(trained), "--output", str(tmp_path / "out"),
        "--destination", "s3://calcloud-processing/trainings",
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr[-2000:]
    uri = next(line.split()[0] for line in sent.stdout.splitlines() if ".tar.gz" in line)
    back = run(server, "python", "-m", "entrypoints.fetch", "--source", uri, "--output", str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr[-2000:]
    copy = tmp_path / "back" / trained.name
    files = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert files == {path.relative_to(trained): path.read_bytes() for path in trained.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"data": "no-such-file.csv"}, "no-such-file.csv does not exist"),
        ({"data": "gopher://jobs"}, "unknown scheme 'gopher'"),
        ({"stage": "Prod"}, "stage 'Prod' does not exist"),
        ({"seed": "abc"}, "--seed"),
        ({"config": "no-such-file.json"}, "no-such-file.json"),
    ],
)
def test_bad_input_is_one_line_and_a_failed_run(server, trained, tmp_path, parameters, words):
    before = {model: len(client(server).search_model_versions(f"name = '{model}'")) for model in MODELS}
    done = mlflow_run(server, "main", **{"data": "sample:400", "output": tmp_path, "config": FAST, **parameters})
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert words in line
    assert "Traceback" not in done.stderr
    api = client(server)
    (newest,) = api.search_runs([api.get_experiment_by_name("calcloud").experiment_id], max_results=1)
    assert newest.info.status == "FAILED"
    assert {model: len(api.search_model_versions(f"name = '{model}'")) for model in MODELS} == before
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_one_line(server, tmp_path):
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CALMLFLOW_CACHE": str(tmp_path)}
    for command in (["python", "-m", "entrypoints.main", "--data", "sample:400"], ["calmlflow", "promote"]):
        done = run(server, *command, **nowhere)
        assert done.returncode == 1
        assert done.stderr.startswith("error: "), done.stderr[-2000:]
        assert len(done.stderr.splitlines()) == 1
        assert "127.0.0.1:9" in done.stderr.replace("host='127.0.0.1', port=9", "127.0.0.1:9")
    done = predict(server, tmp_path, *next(iter(CONTROLS.items())), **nowhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no MLflow server answers at http://127.0.0.1:9" in done.stderr


def test_a_stage_without_a_version_is_named(server, trained, tmp_path):
    control = tmp_path / "control.txt"
    control.write_text(CONTROLS["jabc03020"])
    done = run(server, "calmlflow", "predict", "jabc03020", "--control", str(control), "--stage", "staging")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no version of calcloud-predictor is in stage Staging" in done.stderr


@pytest.mark.parametrize("risk", [-1.0, 2e6, float("nan")])
def test_a_risk_out_of_range_is_told_before_any_job_is_read(tracking, risk):
    from calmlflow.errors import InputError
    from calmlflow.runs.train import TrainingRequest, train

    with pytest.raises(InputError, match=r"risk is .*; expected 0 to 1e\+06"):
        train(TrainingRequest(data="no-such-file.csv", risk=risk))
