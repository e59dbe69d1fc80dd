"""Nobody sees half a file."""

import os

import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.storage.files import replacing


@pytest.fixture
def mask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_takes_its_place_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "out.csv"
    for text in ("first", "another,\r\nline\n"):
        with replacing(path) as file:
            file.write(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_for_others_as_far_as_the_mask_allows(tmp_path, mask):
    with replacing(tmp_path / "out.csv") as file:
        file.write("x")
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "out.csv"
    path.write_text("old")
    for target in (path, tmp_path / "other.csv"):
        with pytest.raises(error), replacing(target) as file:
            file.write("half")
            raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "out.csv", tmp_path / "folder"):
        with pytest.raises(CalmlflowError, match=f"{path} cannot be written"), replacing(path) as file:
            file.write("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
