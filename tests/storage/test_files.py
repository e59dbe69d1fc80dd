"""Files and folders are there whole or not at all, and locks keep other processes out."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.storage import files
from calmlflow.storage.files import LockedError, locked, new_tree, replacing
from tests.samples.commands import started


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
    (tmp_path / "out.csv").chmod(0o604)
    (tmp_path / "link").symlink_to("out.csv")
    with replacing(tmp_path / "link", "wb") as file:
        file.write(b"y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out.csv").read_bytes() == b"y"
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o604
    with replacing(tmp_path / "out.csv", private=True) as file:
        file.write("z")
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600


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
    with pytest.raises(CalmlflowError, match="cannot be locked"), locked(tmp_path / "file" / "lock"):
        pytest.fail("held")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


HOLD = "import sys; from pathlib import Path; from calmlflow.storage.files import locked\n" \
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "new" / "lock"
    words = [sys.executable, "-c", HOLD, path]
    with started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        for patience_s in (0.0, 0.1):
            with pytest.raises(LockedError, match=f"{path} is locked by another process"), locked(path, patience_s):
                pytest.fail("two hold it")
        process.kill()
        with locked(path, 10.0):
            pass
    with locked(path):
        pass


# -- The folder of a training ---------------------------------------------------------------------------------------


@pytest.fixture
def second(monkeypatch):
    """The clock stands still at the second of the users' own example."""
    monkeypatch.setattr(files, "time", SimpleNamespace(time=lambda: 1636048291.7))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_tree_is_named_by_date_and_second_and_is_there_once_it_is_whole(tmp_path, second):
    output = tmp_path / "not" / "there" / "yet"
    with new_tree(output) as tree:
        (tree.partial / "models").mkdir()
        (tree.partial / "models" / "tx_data.json").write_text("{}")
        assert not tree.final.exists()
        assert tree.final == output / "2021-11-04-1636048291"
    assert names(output) == ["2021-11-04-1636048291"]
    assert (tree.final / "models" / "tx_data.json").read_text() == "{}"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_training_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_tree(tmp_path) as tree:
        (tree.partial / "data").mkdir()
        (tree.partial / "data" / "latest.csv").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_the_folder_of_a_training_that_was_killed_goes_with_the_next_one(tmp_path, monkeypatch):
    code = """
import pathlib, sys
from calmlflow.storage.files import new_tree
with new_tree(pathlib.Path(sys.argv[1])):
    print("began", flush=True)
    input()
"""
    with started([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as training:
        training.stdout.readline()
        (partial,) = tmp_path.iterdir()
        (partial / "models").mkdir()
        monkeypatch.setattr(files, "_FRESH_S", 0)
        with new_tree(tmp_path):
            assert partial.exists()
        training.kill()
    monkeypatch.setattr(files, "_FRESH_S", 3600)
    with new_tree(tmp_path):
        assert (partial / "models").exists()
    monkeypatch.setattr(files, "_FRESH_S", 0)
    with new_tree(tmp_path):
        # The new folder may have the old one's name.
        assert not (partial / "models").exists()


def test_two_trainings_may_remove_what_was_left_behind_at_once(tmp_path, monkeypatch):
    left = tmp_path / ".2021-11-04-1636048291"
    left.mkdir()
    os.utime(left, (1, 1))
    hold = files._holding

    def held_late(folder):
        if left.exists():
            left.rmdir()
        return hold(folder)

    monkeypatch.setattr(files, "_holding", held_late)
    with new_tree(tmp_path) as tree:
        pass
    assert names(tmp_path) == [tree.final.name]


def test_two_in_the_same_second_have_a_name_each(tmp_path, second):
    # A dangling link takes a name too.
    (tmp_path / ".2021-11-04-1636048291").symlink_to(tmp_path / "nowhere")
    (tmp_path / "2021-11-04-1636048292").symlink_to(tmp_path / "nowhere")
    with new_tree(tmp_path) as one, new_tree(tmp_path) as other:
        with pytest.raises(ValueError), new_tree(tmp_path):
            raise ValueError
        (one.partial / "one").touch()
        (other.partial / "other").touch()
    assert sorted(tree.final.name for tree in (one, other)) == ["2021-11-04-1636048293", "2021-11-04-1636048294"]
    assert (names(one.final), names(other.final)) == (["one"], ["other"])


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling"):
        with (
            pytest.raises(CalmlflowError, match=f"output {output} cannot be written .*expected a folder"),
            new_tree(output),
        ):
            pytest.fail("began to train")
