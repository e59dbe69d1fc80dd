"""The main job through the real server: train, log to S3, register, promote by stage, predict by stage, serve."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples.commands import FAST, client, mlflow_run, run, runs_named
from tests.samples.console_command import entry_here, run_here

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
ANSWER_KEYS = [
    "memBin", "probabilities", "unseen", "memVal", "clockTime", "killTime", "evidence", "warnings", "version", "source",
]  # fmt: skip


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
    pictures = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.png"))
    assert "plots/mem_bin/confusion.png" in pictures
    shutil.rmtree(copy / "plots")
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


def test_results_read_back(trained):
    from calmlflow.results.files import read_results

    found = {
        target: read_results(trained / "results" / target, target) for target in ("mem_bin", "memory", "wallclock")
    }
    n = len(found["mem_bin"].y_scores)
    assert n > 200
    assert len(found["memory"].predictions) == len(found["wallclock"].predictions) == n


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
    done = predict(server, tmp_path, "iabc01xyq", CONTROLS["iabc01xyq"])
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
print(*{"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "pyarrow"} & set(sys.modules))
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


def test_the_registered_model_answers_as_the_predictor_does(server, trained, tracking, monkeypatch, tmp_path):
    import mlflow
    import pandas as pd

    from calmlflow.hst.features import parse_control
    from calmlflow.predictor import Predictor

    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    predictor, model = Predictor(), mlflow.pyfunc.load_model("models:/calcloud-predictor/Production")
    for dataset, text in CONTROLS.items():
        keys = parse_control(text)
        # One row alone, so that absent keys are absent columns.
        row = {"ipppssoot": dataset, **keys, "n_files": float(keys["n_files"]), "total_mb": float(keys["total_mb"])}
        (answer,) = model.predict(pd.DataFrame([row])).to_dict("records")
        expected = predictor.predict(dataset, keys)
        assert answer == {key: expected[key] for key in ANSWER_KEYS[:-2]}


def test_lambda_reads_the_control_file_from_s3(server, trained, tracking, s3, monkeypatch, tmp_path):
    from calmlflow.predictor import aws_lambda

    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    aws_lambda._predictor.cache_clear()
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
    aws_lambda._predictor.cache_clear()


def test_one_network_alone(server, trained, tracking, tmp_path, capsys):
    from calmlflow.cli.training import wallclock

    options = {"data": "sample:400", "output": tmp_path, "config": FAST, "register": "false"}
    status, out, err = entry_here(capsys, wallclock, **options)
    assert status == 0, err
    assert "kill time" in out
    (tree,) = tmp_path.iterdir()
    assert sorted(path.name for path in (tree / "results").iterdir()) == ["wallclock"]
    assert (tree / "models" / "wall_reg" / "wall_reg.onnx").is_file()
    assert len(client(server).search_model_versions("name = 'calcloud-wallclock'")) == 1


def test_batch_prediction_keeps_order_and_names_bad_rows(server, trained, tracking, tmp_path, capsys):
    import pandas as pd

    from calmlflow.cli.training import predict as predict_jobs

    rows = pd.DataFrame(
        {"ipppssoot": ["iabc01xyq", "zabc01xyq", "oabc06090"], "n_files": [2, 2, 7], "total_mb": [4.1, 4.1, 11.1]}
    )
    rows.to_csv(tmp_path / "in.csv", index=False)
    status, _, err = entry_here(capsys, predict_jobs, data=tmp_path / "in.csv", output=tmp_path / "out.csv")
    assert status == 0, err
    assert runs_named(server, "predict")[0].data.tags["predicted_by_version"] == "1"
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["ipst"].tolist() == ["iabc01xyq", "oabc06090"]
    assert list(found) == [
        "ipst", "bin_pred", "mem_pred", "wall_pred", "kill_time", "prob_2g", "prob_8g", "prob_16g", "prob_64g",
        "jobs_row", "jobs_programme", "jobs_visit", "jobs_run",
    ]  # fmt: skip
    errors = pd.read_csv(tmp_path / "out.errors.csv")
    assert errors["ipppssoot"].tolist() == ["zabc01xyq"]
    assert "'z'" in errors["reason"][0]


def test_a_training_is_compared_with_the_version_in_production(server, trained, tracking, capsys):
    from calmlflow.cli.training import compare

    status, _, err = entry_here(capsys, compare, this=trained)
    assert status == 0, err
    # Production holds this very training, so every paired difference is nothing.
    newest = runs_named(server, "compare")[0]
    differences = {name: value for name, value in newest.data.metrics.items() if name.startswith("difference_")}
    assert "difference_mem_bin_accuracy" in differences
    assert set(differences.values()) == {0.0}
    assert newest.data.metrics["jobs_compared_memory"] > 200


def test_nothing_is_retrained_on_the_jobs_of_the_version_in_production(server, trained, tracking, tmp_path, capsys):
    from calmlflow.cli.training import retrain

    status, out, err = entry_here(capsys, retrain, data="sample:2000", output=tmp_path, config=FAST)
    assert status == 0, err
    assert out.endswith("not needed: nothing has changed enough since version 1 was trained\n")
    assert runs_named(server, "retrain")[0].data.tags["retrain.decision"] == "not needed"
    assert list(tmp_path.iterdir()) == []


def test_a_training_goes_to_s3_and_comes_back_the_same(server, trained, tracking, tmp_path, capsys):
    from calmlflow.cli.jobs import fetch, ship

    place = "s3://calcloud-processing/trainings"
    status, out, err = entry_here(capsys, ship, tree=trained, output=tmp_path / "out", destination=place)
    assert status == 0, err
    uri = next(line.split()[0] for line in out.splitlines() if ".tar.gz" in line)
    status, _, err = entry_here(capsys, fetch, source=uri, output=tmp_path / "back")
    assert status == 0, err
    copy = tmp_path / "back" / trained.name
    files = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert files == {path.relative_to(trained): path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def versions(server) -> dict[str, int]:
    return {model: len(client(server).search_model_versions(f"name = '{model}'")) for model in MODELS}


def test_bad_input_of_mlflow_run_is_one_line_and_a_failed_run(server, trained, tmp_path):
    done = mlflow_run(server, "compare", this=tmp_path / "nowhere")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'nowhere'}' is no folder" in line
    assert "Traceback" not in done.stderr
    api = client(server)
    (newest,) = api.search_runs([api.get_experiment_by_name("calcloud").experiment_id], max_results=1)
    assert newest.info.status == "FAILED"


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"data": "no-such-file.csv"}, 1, "no-such-file.csv does not exist"),
        ({"data": "gopher://jobs"}, 1, "unknown scheme 'gopher'"),
        ({"stage": "Prod"}, 1, "stage 'Prod' does not exist"),
        ({"seed": "abc"}, 2, "--seed"),
        ({"config": "no-such-file.json"}, 1, "no-such-file.json"),
        # Before any job is read.
        ({"data": "no-such-file.csv", "risk": 2e6}, 1, "risk is 2e+06; expected 0 to 1e+06"),
    ],
)
def test_bad_input_is_one_line(server, trained, tracking, tmp_path, capsys, parameters, status, words):
    from calmlflow.cli.training import main

    before = versions(server)
    given = {"data": "sample:400", "output": tmp_path, "config": FAST, **parameters}
    found, _, err = entry_here(capsys, main, **given)
    assert found == status
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err.splitlines()[-1]
    if status == 1:
        assert runs_named(server, "main")[0].info.status == "FAILED"
    assert versions(server) == before
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_one_line(server, tmp_path, monkeypatch, capsys):
    from calmlflow.cli.training import main

    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CALMLFLOW_CACHE": str(tmp_path)}
    done = predict(server, tmp_path, *next(iter(CONTROLS.items())), **nowhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no MLflow server answers at http://127.0.0.1:9" in done.stderr
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    for status, _, err in (entry_here(capsys, main, data="sample:400"), run_here(capsys, "promote")):
        assert status == 1
        assert err.startswith("error: "), err
        assert len(err.splitlines()) == 1
        assert "http://127.0.0.1:9" in err


def test_a_stage_without_a_version_is_named(server, trained, tmp_path):
    control = tmp_path / "control.txt"
    control.write_text(CONTROLS["jabc03020"])
    done = run(server, "calmlflow", "predict", "jabc03020", "--control", str(control), "--stage", "staging")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no version of calcloud-predictor is in stage Staging" in done.stderr
