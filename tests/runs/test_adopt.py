"""Networks trained elsewhere become a champion on the real server: spacekit's own archive, from end to end."""

import hashlib
import itertools
import json
import math
import re
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from scipy.stats import yeojohnson

from calmlflow import settings as project
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.backend import keras
from calmlflow.predictor import Predictor
from calmlflow.results.scores import SCORES
from calmlflow.runs import adopt as adoption
from calmlflow.runs.adopt import (
    SPACEKIT_ARCHIVE,
    AdoptionRequest,
    SourceFile,
    adopt,
    adopt_network,
    read_scaling,
    read_source,
)
from calmlflow.runs.data import load_training_data
from calmlflow.runs.summary import print_training

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # spacekit's networks want their one input in a list; a tensor does as well.
    pytest.mark.filterwarnings("ignore:The structure of `inputs`"),
]
NETWORKS = ("mem_clf", "mem_reg", "wall_reg")
# The names of the house belong to another test on this server.
BUNDLE = "adopt-test-predictor"
MODELS = {network: f"adopt-test-{network}" for network in NETWORKS}
DATA = "sample:1500"
CONTROLS = {
    "iabc01xyq": {"n_files": 2, "total_mb": 4.1, "DETECTOR": "UVIS", "CRSPLIT": "1"},
    "jbcd04010": {"n_files": 5, "total_mb": 171.7, "DETECTOR": "WFC", "PCTECORR": "PERFORM", "CRSPLIT": "2"},
}
SEED = 3
NUMBERS = itertools.count()


@pytest.fixture
def names(monkeypatch):
    for module in (project, adoption):
        monkeypatch.setattr(module, "BUNDLE_MODEL", BUNDLE)
        monkeypatch.setattr(module, "NETWORK_MODELS", MODELS)


@pytest.fixture(scope="module")
def kept():
    """What the one adoption of this file gave, once it was made."""
    return SimpleNamespace(outcome=None)


@pytest.fixture
def adopted(kept, tracking, names, tmp_path_factory):
    """spacekit's networks, adopted and put into Production once for all tests here."""
    if kept.outcome is None:
        output = tmp_path_factory.mktemp("adopted")
        kept.outcome = adopt(AdoptionRequest("spacekit", DATA, SEED, str(output), "production"))
    return kept.outcome


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder that spacekit's archive unpacks to."""
    from importlib.metadata import distribution

    folder = tmp_path_factory.mktemp("theirs")
    with zipfile.ZipFile(str(distribution("spacekit").locate_file(SPACEKIT_ARCHIVE))) as archive:
        archive.extractall(folder)
    return folder / "hst_cal"


def expected_answers(theirs: Path, features) -> dict[str, np.ndarray]:
    """What Keras says of raw features, scaled by SciPy: nothing of this project in between."""
    scaling = json.loads((theirs / "tx_data.json").read_text())
    scaled = np.array(features, dtype=float)
    for column in range(2):
        powered = yeojohnson(scaled[:, column], lmbda=scaling["lambdas"][column])
        scaled[:, column] = (powered - scaling["mu"][column]) / scaling["sigma"][column]
    found = {}
    for network in NETWORKS:
        model = keras.saving.load_model(theirs / f"{network}.keras", compile=False)
        found[network] = np.asarray(model(scaled.astype(np.float32)), dtype=float)
    return found


def close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# -- What is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_versions_and_run_say_what_was_adopted_and_on_which_jobs_it_was_scored(adopted, theirs, capsys):
    assert adopted.versions == dict.fromkeys([*MODELS.values(), BUNDLE], 1)
    client = MlflowClient()
    for name, networks in {BUNDLE: NETWORKS, **{MODELS[network]: (network,) for network in NETWORKS}}.items():
        version = client.get_model_version(name, "1")
        assert version.current_stage == ("Production" if name == BUNDLE else "None")
        tags = version.tags
        assert (tags["data"], tags["jobs"], "seed" in tags) == ("adopted from spacekit", "0", False)
        assert {key for key in tags if key.startswith("run.")} == {f"run.{network}" for network in networks}
        assert all(tags[f"run.{network}"] == adopted.run_id for network in networks)
    run = client.get_run(adopted.run_id)
    params, metrics = run.data.params, run.data.metrics
    assert (run.info.status, params["source"], params["data"], params["n_jobs"]) == (
        "FINISHED",
        "spacekit",
        DATA,
        "1500",
    )
    for network in NETWORKS:
        content = (theirs / f"{network}.keras").read_bytes()
        assert params[f"sha256_{network}"] == hashlib.sha256(content).hexdigest()
    assert [found.tags[0].value for found in run.inputs.dataset_inputs] == ["testing"]
    mae = adopted.scores["wallclock"]["test"]["mae"]
    assert metrics["test_wallclock_mae"] == mae == pytest.approx(float(tags["score.wallclock.mae"]), rel=1e-5)
    # The page of the run shows scores with intervals, and the command prints them.
    shown = SCORES["wallclock"]["mae"].text(mae)
    (row,) = re.findall(r"\| wallclock \| mean absolute error \|.*", run.data.tags["mlflow.note.content"])
    cells = re.fullmatch(rf".*\| {shown} \| ([\d,]+) s \| ([\d,]+) to ([\d,]+) s \| 1,500 in [\d,]+ \|", row)
    floor, low, high = (int(cell.replace(",", "")) for cell in cells.groups())
    assert floor < mae
    assert low < mae < high
    print_training(adopted)
    printed = capsys.readouterr().out
    assert all(words in printed for words in (shown, f"registered: {BUNDLE} version 1", "promoted: ", adopted.run_id))


@pytest.mark.slow
def test_the_tree_is_that_of_a_training_and_the_artifacts_are_the_tree(adopted, theirs, tmp_path):
    tree = adopted.tree
    copy = Path(mlflow.artifacts.download_artifacts(run_id=adopted.run_id, dst_path=str(tmp_path)))
    on_disk = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    as_artifacts = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert as_artifacts == on_disk
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]
    for network in NETWORKS:
        theirs_bytes = (theirs / f"{network}.keras").read_bytes()
        assert (tree / "models" / network / f"{network}.keras").read_bytes() == theirs_bytes
    assert json.loads((tree / "models/tx_data.json").read_text()) == json.loads((theirs / "tx_data.json").read_text())
    # Nobody knows what they were trained on.
    assert not (tree / "models/seen_rows.json").exists()
    assert not (tree / "models/decision.json").exists()
    table = pd.read_csv(tree / "data/latest.csv")
    assert set(table["split"]) == {"test"}
    jobs = read_jobs(DATA, SEED).valid
    assert table["ipst"].tolist() == jobs["ipst"].tolist()
    answers = expected_answers(theirs, jobs[list(FEATURES)])
    close(table["mem_pred"], answers["mem_reg"][:, 0])
    close(table["wall_pred"], answers["wall_reg"][:, 0])


@pytest.mark.slow
def test_scores_are_those_of_all_jobs(adopted, theirs):
    jobs = read_jobs(DATA, SEED).valid
    answers = expected_answers(theirs, jobs[list(FEATURES)])
    scores = {target: kinds["test"] for target, kinds in adopted.scores.items()}
    hits = answers["mem_clf"].argmax(axis=1) == jobs["mem_bin"]
    assert scores["mem_bin"]["accuracy"] == pytest.approx(hits.mean(), rel=1e-3)
    error = np.abs(answers["mem_reg"][:, 0] - jobs["memory"])
    assert scores["memory"]["mae"] == pytest.approx(error.mean(), rel=1e-4)
    kill_time_s = np.clip(np.ceil(6 * answers["wall_reg"][:, 0]), 60, 172_800)
    assert scores["wallclock"]["kill_time_coverage"] == np.mean(jobs["wallclock"] <= kill_time_s)
    assert 0.9 < scores["mem_bin"]["accuracy"] <= adopted.scores["mem_bin"]["floor"]["accuracy"]


# -- In operation -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_answers_are_those_of_keras_with_the_scaling_it_came_with(adopted, theirs):
    predictor = Predictor()
    expected = expected_answers(theirs, [job_features(name, control) for name, control in CONTROLS.items()])
    for number, (name, control) in enumerate(CONTROLS.items()):
        answer = predictor.predict(name, control)
        assert (answer["version"], answer["source"], answer["unseen"]) == ("1", "registry", False)
        close(answer["probabilities"], expected["mem_clf"][number])
        assert answer["memBin"] == expected["mem_clf"][number].argmax()
        assert answer["memVal"] == pytest.approx(expected["mem_reg"][number, 0], abs=0.0051)
        wall_s = expected["wall_reg"][number, 0]
        assert answer["clockTime"] == pytest.approx(wall_s, rel=1e-4, abs=1)
        assert answer["killTime"] == pytest.approx(np.clip(6 * wall_s, 60, 172_800), rel=1e-4, abs=1)


# -- Refusals ---------------------------------------------------------------------------------------------------------


def lambda_network(files: dict[str, bytes], folder: Path) -> None:
    doubled = keras.layers.Lambda(lambda x: x * 2)
    keras.Sequential([keras.Input((9,)), doubled, keras.layers.Dense(1)]).save(folder / "lambda.keras")
    files["wall_reg.keras"] = (folder / "lambda.keras").read_bytes()


def nan_scaling(files: dict[str, bytes], folder: Path) -> None:
    files["tx_data.json"] = b'{"lambdas": [1, 1], "mu": [0, 0], "sigma": [NaN, 1]}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "request_change", "words"),
    [
        (lambda_network, {}, r"wall_reg\.keras: config\.json asks for class 'Lambda' of module 'keras\.layers'"),
        (nan_scaling, {}, r"tx_data\.json: scaling: sigma is \(nan, 1\.0\)"),
        (None, {"stage": "Prod"}, "stage 'Prod' does not exist"),
        (None, {"source": "nowhere"}, "source 'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_adopted_fails_the_run_and_leaves_nothing(
    tracking, theirs, tmp_path, monkeypatch, change, request_change, words
):
    experiment = f"adopt-test-{next(NUMBERS)}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    for name in ("BUNDLE_MODEL", "NETWORK_MODELS"):
        none = {network: f"{experiment}-{network}" for network in NETWORKS} if name == "NETWORK_MODELS" else experiment
        monkeypatch.setattr(adoption, name, none)
    files = {path.name: path.read_bytes() for path in theirs.iterdir()}
    if change:
        change(files, tmp_path)
    source = write(tmp_path / "theirs.zip", files)
    request = AdoptionRequest(str(source), "sample:50", 0, str(tmp_path / "out"))
    with pytest.raises(CalmlflowError, match=words) as caught:
        adopt(replace(request, **request_change))
    assert "\n" not in str(caught.value)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.status == "FAILED"
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))
    assert not client.search_registered_models(f"name LIKE '{experiment}%'")


def test_a_network_that_onnx_cannot_express_is_named(tmp_path):
    keras.Sequential([keras.Input((9,)), keras.layers.Dense(1, activation="gelu")]).save(tmp_path / "gelu.keras")
    file = SourceFile(Path("theirs/mem_reg.keras"), (tmp_path / "gelu.keras").read_bytes())
    with pytest.raises(CalmlflowError, match=r"theirs/mem_reg\.keras: activation 'gelu' .* cannot be run as ONNX"):
        adopt_network("mem_reg", file, load_training_data("sample:50", 0, 0.2), tmp_path / "models")


# -- Sources ----------------------------------------------------------------------------------------------------------

FLAT = {"mem_clf.keras": b"clf", "mem_reg.keras": b"reg", "wall_reg.keras": b"wall", "tx_data.json": b"{}"}
PARTS = {"mem_clf": b"clf", "mem_reg": b"reg", "wall_reg": b"wall", "scaling": b"{}"}
LAYOUTS = {
    "flat": FLAT,
    "one folder": {f"hst_cal/{name}": content for name, content in FLAT.items()},
    "a training": {
        **{f"2021-11-04-1636048291/models/{name[:-6]}/{name}": FLAT[name] for name in FLAT if name.endswith(".keras")},
        "2021-11-04-1636048291/models/tx_data.json": b"{}",
        "2021-11-04-1636048291/models/mem_clf/mem_clf.onnx": b"other",
        "2021-11-04-1636048291/data/latest.csv": b"ipst",
    },
    "older scaling": {"models/pt_transform" if name == "tx_data.json" else name: FLAT[name] for name in FLAT},
}
each_kind = pytest.mark.parametrize("kind", ["folder", "archive.zip"])


def write(place: Path, files: dict[str, bytes]) -> Path:
    """A folder or a zip archive, by the name's ending."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    return place


def refusal(source: object) -> str:
    with pytest.raises(InputError) as caught:
        read_source(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_found_in_every_layout(tmp_path, kind, layout):
    place = write(tmp_path / kind, LAYOUTS[layout])
    found = read_source(str(place))
    assert {part: file.content for part, file in found.items()} == PARTS
    names = {(place / name).as_posix() for name in LAYOUTS[layout]}
    assert {file.shown.as_posix() for file in found.values()} <= names


@each_kind
def test_files_that_are_missing_doubled_or_too_large_are_named(tmp_path, kind, monkeypatch):
    some = {name: content for name, content in FLAT.items() if name != "mem_reg.keras"}
    place = write(tmp_path / f"missing-{kind}", some)
    assert refusal(place).startswith(f"{place} holds no mem_reg.keras; expected mem_clf.keras, ")
    place = write(tmp_path / f"twice-{kind}", {**FLAT, "older/mem_reg.keras": b"other"})
    assert f"holds both {place}/mem_reg.keras and {place}/older/mem_reg.keras" in refusal(place)
    assert "pt_transform" in refusal(write(tmp_path / f"scaling-{kind}", {**FLAT, "pt_transform": b"{}"}))
    # As an earlier Keras wrote a network.
    for name in ("mem_reg", "mem_reg.keras"):
        place = write(tmp_path / f"earlier-{name}-{kind}", {**some, f"models/{name}/saved_model.pb": b"\x08\x01"})
        assert refusal(place).startswith(f"{place}/models/{name} is a SavedModel of an earlier Keras, ")
        assert "expected mem_reg.keras: read its weights where it was trained" in refusal(place)
    monkeypatch.setattr(adoption, "MAX_MEMBERS", 3)
    assert "more than 3 files" in refusal(write(tmp_path / f"many-{kind}", FLAT))
    monkeypatch.undo()
    monkeypatch.setattr(adoption, "MAX_FILE_BYTES", 3)
    assert "wall_reg.keras has 4 bytes; expected at most 3" in refusal(write(tmp_path / kind, FLAT))


def test_a_wrong_source_is_named(tmp_path, monkeypatch):
    assert "does not exist; expected a folder, a .zip archive, or spacekit" in refusal(tmp_path / "nowhere")
    (tmp_path / "file.tar.gz").write_text("x")
    assert "is no zip archive; expected" in refusal(tmp_path / "file.tar.gz")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    # The tests need the package.
    monkeypatch.setattr(adoption, "distribution", missing)
    assert "package spacekit is not installed" in refusal("spacekit")
    # A folder of this name is a path.
    monkeypatch.chdir(write(tmp_path / "spacekit", FLAT).parent)
    assert read_source("./spacekit")["mem_clf"].content == b"clf"


def test_spacekit_is_the_archive_of_the_installed_package():
    found = read_source("spacekit")
    assert {file.shown.as_posix() for file in found.values()} == {f"spacekit/hst_cal/{name}" for name in FLAT}
    given_scaling, scaling = json.loads(found["scaling"].content), read_scaling(found["scaling"])
    for key in ("lambdas", "mu", "sigma"):
        assert list(getattr(scaling, key)) == given_scaling[key]


# -- Scaling ----------------------------------------------------------------------------------------------------------

OLDER = {"f_lambda": -1.5, "s_lambda": -0.1, "f_mean": 0.6, "f_sigma": 0.04, "s_mean": 2.1, "s_sigma": 1.2}
numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)


def scaling_file(data: object) -> SourceFile:
    return SourceFile(Path("theirs", "pt_transform"), data if isinstance(data, bytes) else json.dumps(data).encode())


@settings(max_examples=30)
@given(*[numbers] * 4, positive, positive)
def test_both_kinds_of_scaling_mean_the_same(l_files, l_size, m_files, m_size, s_files, s_size):
    older = dict(zip(OLDER, (l_files, l_size, m_files, s_files, m_size, s_size), strict=True))
    expected = Scaling((l_files, l_size), (m_files, m_size), (s_files, s_size))
    assert read_scaling(scaling_file(older)) == expected
    assert read_scaling(scaling_file(json.loads(expected.to_json()))) == expected


@pytest.mark.parametrize(
    "data",
    [
        *(OLDER | {"f_lambda": bad} for bad in (math.nan, "x", None, [1.0])),
        {name: value for name, value in OLDER.items() if name != "s_mean"},
        OLDER | {"s_sigma": -1},
        {"lambdas": [1, 1], "mu": [0, math.nan], "sigma": [1, 1]},
        {"lambdas": [1], "mu": [0], "sigma": [1]},
        [], None, b"", b"\xff", b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_scaling_that_cannot_be_is_refused_with_its_file(data):
    with pytest.raises(InputError) as caught:
        read_scaling(scaling_file(data))
    assert str(caught.value).startswith("theirs/pt_transform")
    assert "expected" in str(caught.value)
