"""Where networks from elsewhere lie, and what is refused before anybody looks into them."""

import json
import math
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.scaling import Scaling
from calmlflow.runs import adoption_source
from calmlflow.runs.adoption_source import SourceFile, read_scaling, read_source

FLAT = {
    "mem_clf.keras": b"clf",
    "mem_reg.keras": b"reg",
    "wall_reg.keras": b"wall",
    "tx_data.json": b"{}",
}
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


def write(place: Path, files: dict[str, bytes]) -> Path:
    """A folder or an archive, by the name's ending."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    return place


each_kind = pytest.mark.parametrize("kind", ["folder", "archive.zip"])


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
@pytest.mark.parametrize("missing", FLAT)
def test_a_missing_file_is_named(tmp_path, kind, missing):
    place = write(tmp_path / kind, {name: content for name, content in FLAT.items() if name != missing})
    expected = "expected mem_clf.keras, mem_reg.keras, wall_reg.keras, tx_data.json"
    assert refusal(place) == f"{place} holds no {missing}; {expected}"


@each_kind
def test_a_file_that_is_there_twice_is_told_with_both_places(tmp_path, kind):
    place = write(tmp_path / kind, {**FLAT, "older/mem_reg.keras": b"other"})
    assert "holds both mem_reg.keras and older/mem_reg.keras" in refusal(place)
    place = write(tmp_path / f"scaling-{kind}", {**FLAT, "pt_transform": b"{}"})
    text = refusal(place)
    assert "pt_transform" in text
    assert "tx_data.json" in text


@each_kind
def test_files_too_deep_are_not_looked_for(tmp_path, kind):
    assert "holds no mem_clf.keras" in refusal(write(tmp_path / kind, {f"1/2/3/4/5/{name}": b"" for name in FLAT}))


@each_kind
def test_a_network_of_an_earlier_keras_is_a_folder_and_told(tmp_path, kind):
    files = {name: content for name, content in FLAT.items() if name != "mem_reg.keras"}
    place = tmp_path / kind
    if kind == "archive.zip":
        write(place, {**files, "mem_reg.keras/": b""})
    else:
        write(place, {**files, "mem_reg.keras/saved_model.pb": b""})
    assert "mem_reg.keras is " in refusal(place)


@each_kind
def test_a_file_too_large_is_told(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(adoption_source, "MAX_FILE_BYTES", 3)
    assert "wall_reg.keras has 4 bytes; expected at most 3" in refusal(write(tmp_path / kind, FLAT))


@each_kind
def test_too_many_files_are_told(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(adoption_source, "MAX_MEMBERS", 3)
    assert "expected" in refusal(write(tmp_path / kind, FLAT))


def test_what_is_no_source_is_told(tmp_path):
    assert "does not exist; expected a folder, a .zip archive, or spacekit" in refusal(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("x")
    assert "is no zip archive" in refusal(tmp_path / "file.txt")
    (tmp_path / "file.zip").write_text("x")
    assert "cannot be unpacked" in refusal(tmp_path / "file.zip")


# -- spacekit ---------------------------------------------------------------------------------------------------------


def test_spacekit_is_the_archive_of_the_installed_package():
    found = read_source("spacekit")
    assert {part: file.shown.as_posix() for part, file in found.items()} == {
        **{network: f"spacekit/hst_cal/{network}.keras" for network in ("mem_clf", "mem_reg", "wall_reg")},
        "scaling": "spacekit/hst_cal/tx_data.json",
    }
    given = json.loads(found["scaling"].content)
    scaling = read_scaling(found["scaling"])
    assert [list(values) for values in (scaling.lambdas, scaling.mu, scaling.sigma)] == [
        given[key] for key in ("lambdas", "mu", "sigma")
    ]


def test_spacekit_that_is_not_installed_is_told(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    # The tests need the package.
    monkeypatch.setattr(adoption_source, "distribution", missing)
    assert "package spacekit is not installed" in refusal("spacekit")


def test_spacekit_without_the_archive_is_told(monkeypatch):
    monkeypatch.setattr(adoption_source, "SPACEKIT_ARCHIVE", "spacekit/elsewhere.zip")
    assert "has no spacekit/elsewhere.zip" in refusal("spacekit")


def test_a_folder_named_spacekit_is_read_as_a_path(tmp_path, monkeypatch):
    write(tmp_path / "spacekit", FLAT)
    monkeypatch.chdir(tmp_path)
    assert read_source("./spacekit")["mem_clf"].content == b"clf"
    assert read_source("spacekit")["mem_clf"].content != b"clf"


# -- Scaling ----------------------------------------------------------------------------------------------------------

OLDER = {"f_lambda": -1.5, "s_lambda": -0.1, "f_mean": 0.6, "f_sigma": 0.04, "s_mean": 2.1, "s_sigma": 1.2}
numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)


def scaling_file(data: object) -> SourceFile:
    return SourceFile(Path("theirs", "pt_transform"), data if isinstance(data, bytes) else json.dumps(data).encode())


@given(*[numbers] * 4, positive, positive)
def test_both_kinds_of_scaling_mean_the_same(l_files, l_size, m_files, m_size, s_files, s_size):
    older = dict(zip(OLDER, (l_files, l_size, m_files, s_files, m_size, s_size), strict=True))
    expected = Scaling((l_files, l_size), (m_files, m_size), (s_files, s_size))
    assert read_scaling(scaling_file(older)) == expected
    assert read_scaling(scaling_file(json.loads(expected.to_json()))) == expected


@pytest.mark.parametrize(
    "data",
    [
        *(OLDER | {key: bad} for key in OLDER for bad in (math.nan, math.inf, "x", None, [1.0])),
        *({name: value for name, value in OLDER.items() if name != key} for key in OLDER),
        OLDER | {"f_sigma": 0.0},
        OLDER | {"s_sigma": -1},
        {"lambdas": [1, 1], "mu": [0, math.nan], "sigma": [1, 1]},
        {"lambdas": [1, 1], "mu": [0, 0], "sigma": [1, 0]},
        {"lambdas": [1], "mu": [0], "sigma": [1]},
        {}, [], None, 1, b"", b"{", b"\xff", b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_scaling_that_cannot_be_is_refused_with_its_file(data):
    with pytest.raises(InputError) as caught:
        read_scaling(scaling_file(data))
    assert str(caught.value).startswith("theirs/pt_transform")
    assert "expected" in str(caught.value)
