"""Job records in archives of trainings, as they are packed by whoever packs them."""

import io
import subprocess
import tarfile
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import HISTORY, JOBS
from calmlflow.jobs.stores.open import open_store, read_jobs

NAME = "2021-11-04-1636048291"
KINDS = (".zip", ".tgz", ".tar.gz")


def table_of(name: str) -> str:
    return f"ipst,n_files\n{name},5\n"


def pack(path: Path, members: dict) -> Path:
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in members.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in contents.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def names(path: Path) -> list[str]:
    with closing(open_store(str(path))) as store:
        return pd.concat(store.read(JOBS))["ipst"].tolist()


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_store(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainings_archive_gives_what_was_packed(tmp_path, kind):
    sample = draw_sample(200)
    path = pack(
        tmp_path / f"{NAME}{kind}",
        {f"{NAME}/models/tx_data.json": "{}", f"{NAME}/data/latest.csv": sample.to_csv(index=False)},
    )
    pd.testing.assert_frame_equal(read_jobs(str(path)).valid, sample, check_exact=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        (["data/latest.csv", "latest.csv", "data/quarantine.csv"], "data/latest.csv"),
        (["a/b/data/latest.csv", "latest.csv"], "a/b/data/latest.csv"),
        (["x/latest.csv", "x/other.csv"], "x/latest.csv"),
        (["x/Jobs.CSV", "README.md"], "x/Jobs.CSV"),
        (["mydata/latest.csv", "other.csv"], "mydata/latest.csv"),
        (["./data/latest.csv", "./other.csv"], "./data/latest.csv"),
        (["data/latest.csv", "__MACOSX/data/latest.csv", "data/._latest.csv"], "data/latest.csv"),
    ],
)
def test_which_member_is_the_table(tmp_path, kind, members, wanted):
    path = pack(tmp_path / f"a{kind}", {member: table_of(member) for member in members})
    assert names(path) == [wanted]


@pytest.mark.parametrize("folder", [".", NAME])
def test_an_archive_by_the_systems_own_tar(tmp_path, folder):
    inside = tmp_path / NAME / "data"
    inside.mkdir(parents=True)
    (inside / "latest.csv").write_text(table_of("own"))
    at = tmp_path / NAME if folder == "." else tmp_path
    subprocess.run(["tar", "-czf", tmp_path / "a.tgz", "-C", at, folder], check=True)
    assert names(tmp_path / "a.tgz") == ["own"]


@pytest.mark.parametrize("kind", KINDS)
def test_none_and_several_tables(tmp_path, kind):
    none = pack(tmp_path / f"none{kind}", {"a.txt": "x", "data/latest.csv.bak": "x"})
    expected = "expected one data/latest.csv, latest.csv or other CSV file"
    assert refusal(none) == f"archive {none} holds no CSV file; {expected}"
    two = pack(tmp_path / f"two{kind}", {"a/data/latest.csv": "x", "b/data/latest.csv": "x", "latest.csv": "x"})
    assert refusal(two) == f"archive {two} holds 2 tables (a/data/latest.csv, b/data/latest.csv); {expected}"
    many = pack(tmp_path / f"many{kind}", {f"{number:02}.csv": "x" for number in range(12)})
    assert "holds 12 tables (00.csv, " in refusal(many)
    assert "09.csv, ...); " in refusal(many)


def test_a_table_that_is_none_is_told_by_archive_and_member(tmp_path):
    path = pack(tmp_path / "a.zip", {"data/latest.csv": b"\x80\x02X\0\0"})
    with pytest.raises(InputError) as caught:
        read_jobs(str(path))
    assert str(caught.value).startswith(f"{path}, member data/latest.csv is not text; ")


def test_nothing_is_written_into_an_archive_and_nothing_is_left_of_it(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", {"data/latest.csv": draw_sample(20).to_csv(index=False)})
    before = path.read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    store = open_store(str(path), create=True)
    assert store.name == str(path)
    assert (store.count(JOBS), store.count(HISTORY)) == (20, 0)
    name = draw_sample(20)["ipst"][7]
    assert store.get(JOBS, [name])["ipst"].tolist() == [name]
    with pytest.raises(InputError, match=r"a\.zip can only be read; expected "):
        store.put(JOBS, draw_sample(1))
    with pytest.raises(InputError, match=r"a\.zip can only be read; expected "), store.change():
        pass
    store.close()
    pack(tmp_path / "bad.zip", {"a.txt": "x"})
    refusal(tmp_path / "bad.zip")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_not_there(tmp_path, kind):
    path = tmp_path / f"none{kind}"
    assert refusal(path) == f"{path} does not exist; expected an archive of a training"
    with pytest.raises(InputError, match="does not exist; expected an archive"):
        open_store(str(path), create=True)
