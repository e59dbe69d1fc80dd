"""The folder of a training is there whole, or not at all."""

from types import SimpleNamespace

import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.storage import tree as trees
from calmlflow.storage.tree import new_tree


@pytest.fixture
def second(monkeypatch):
    """The clock stands still at the second of the users' own example."""
    monkeypatch.setattr(trees, "time", SimpleNamespace(time=lambda: 1636048291.7))


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
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_tree(tmp_path) as tree:
        (tree.partial / "data").mkdir()
        (tree.partial / "data" / "latest.csv").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_two_in_the_same_second_have_a_name_each(tmp_path, second):
    with new_tree(tmp_path) as one, new_tree(tmp_path) as other:
        (one.partial / "one").touch()
        (other.partial / "other").touch()
    with new_tree(tmp_path) as third:
        pass
    assert names(tmp_path) == [f"2021-11-04-163604829{digit}" for digit in (1, 2, 3)]
    assert (names(one.final), names(other.final), names(third.final)) == (["one"], ["other"], [])


def test_the_failure_of_one_leaves_the_other(tmp_path, second):
    with new_tree(tmp_path) as one:
        with pytest.raises(ValueError), new_tree(tmp_path):
            raise ValueError
        (one.partial / "file").touch()
    assert names(one.final) == ["file"]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling"):
        with (
            pytest.raises(CalmlflowError, match=f"output {output} cannot be written .*expected a folder"),
            new_tree(output),
        ):
            pytest.fail("began to train")


def test_a_name_that_a_dangling_link_holds_is_taken(tmp_path, second):
    (tmp_path / ".2021-11-04-1636048291").symlink_to(tmp_path / "nowhere")
    (tmp_path / "2021-11-04-1636048292").symlink_to(tmp_path / "nowhere")
    with new_tree(tmp_path) as tree:
        (tree.partial / "file").touch()
    assert tree.final.name == "2021-11-04-1636048293"
    assert names(tree.final) == ["file"]
