"""Archives of a training: the same bytes for the same content, whole or not at all, and nothing out of the folder."""

import gzip
import io
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage import archive
from calmlflow.storage.archive import pack, unpack

NAME = "2021-11-04-1636048291"
TREE = {
    "data": {"latest.csv": b"ipst,memory\nj8c601020,0.66\n" * 50},
    "models": {"tx_data.json": b"{}", "mem_clf": {"mem_clf.onnx": bytes(range(256)) * 20}},
    "results": {"mem_bin": {}},
    "empty.txt": b"",
}

# Everything that a Linux file system takes, but for what `pack` refuses.
names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
folders = st.dictionaries(
    names,
    st.recursive(st.binary(max_size=300), lambda child: st.dictionaries(names, child, max_size=3), max_leaves=8),
    max_size=4,
)
trees = st.builds(lambda rest, models: {**rest, "models": models}, folders, folders)


def make(folder: Path, content: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        if isinstance(value, dict):
            make(folder / name, value)
        else:
            (folder / name).write_bytes(value)
    return folder


def read(folder: Path) -> dict:
    return {path.name: read(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


def reversed_tree(content: dict) -> dict:
    return {
        name: reversed_tree(value) if isinstance(value, dict) else value for name, value in reversed(content.items())
    }


@contextmanager
def new_folder() -> Iterator[Path]:
    # Hypothesis runs many examples in one test, so tmp_path would be shared.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# -- Packing --------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(trees)
def test_any_tree_comes_back_from_both_archives(tree):
    with new_folder() as folder:
        whole, models = pack(make(folder / NAME, tree), folder / "out")
        assert (whole.name, models.name) == (f"{NAME}.tar.gz", "models.zip")
        assert unpack(whole, folder / "back") == folder / "back" / NAME
        assert read(folder / "back" / NAME) == tree
        assert unpack(models, folder / "back") == folder / "back" / "models"
        assert read(folder / "back" / "models") == tree["models"]
        assert {path.name for path in (folder / "back").iterdir()} == {NAME, "models"}
        assert {path.name for path in (folder / "out").iterdir()} == {whole.name, models.name}
        # Again, with other content.
        (folder / NAME / "models" / ("new" * 10)).mkdir()
        assert pack(folder / NAME, folder / "out") == (whole, models)
        assert (unpack(models, folder / "again") / ("new" * 10)).is_dir()


@settings(max_examples=25)
@given(trees, st.integers(min_value=0, max_value=2**31), st.sampled_from([0o600, 0o444, 0o777]))
def test_the_same_content_gives_the_same_bytes(tree, seconds, mode):
    with new_folder() as folder:
        one = make(folder / "one" / NAME, tree)
        other = make(folder / "other" / NAME, reversed_tree(tree))
        for path in other.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            os.utime(path, (seconds, seconds))
        assert [path.read_bytes() for path in pack(one, folder / "a")] == [
            path.read_bytes() for path in pack(other, folder / "b")
        ]


def test_archives_say_nothing_of_the_machine_or_the_moment(tmp_path):
    whole, models = pack(make(tmp_path / NAME, TREE), tmp_path)
    header = whole.read_bytes()[:10]
    # RFC 1952: no name nor anything else optional, no time, and no operating system.
    assert (header[3], header[4:8], header[9]) == (0, bytes(4), 255)
    with tarfile.open(whole) as tar:
        found = {(one.uid, one.gid, one.uname, one.gname, one.mtime, one.isdir(), one.mode) for one in tar}
    assert found == {(0, 0, "", "", 0, True, 0o755), (0, 0, "", "", 0, False, 0o644)}
    with zipfile.ZipFile(models) as zipped:
        infos = zipped.infolist()
    assert {(info.date_time, info.create_system, info.extra) for info in infos} == {((1980, 1, 1, 0, 0, 0), 3, b"")}
    assert {info.external_attr >> 16 for info in infos} == {stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644}


@pytest.mark.parametrize("where", [".", "models"])
@pytest.mark.parametrize(
    ("kind", "spoil"),
    [("a symbolic link", lambda path: path.symlink_to("/etc/hostname")), ("a special file", os.mkfifo)],
)
def test_links_and_special_files_are_refused_by_name(tmp_path, where, kind, spoil):
    tree = make(tmp_path / NAME, TREE)
    spoil(tree / where / "bad")
    with pytest.raises(InputError, match=rf"bad is {kind}; expected only files and folders"):
        pack(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [b"back\\slash", b"not-\xff-text"])
def test_names_that_cannot_be_unpacked_everywhere_are_not_packed(tmp_path, name):
    tree = make(tmp_path / NAME, TREE)
    Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).touch()
    with pytest.raises(InputError, match="cannot be packed; expected Unicode without backslashes"):
        pack(tree, tmp_path / "out")


def test_a_tree_that_is_none_and_an_output_in_the_tree_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is no folder"):
        pack(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match="models is no folder"):
        pack(make(tmp_path / "other", {"data": {}}), tmp_path / "out")
    tree = make(tmp_path / NAME, TREE)
    with pytest.raises(InputError, match="expected a folder outside"):
        pack(tree, tree / "results")
    assert read(tree) == TREE


@pytest.mark.parametrize(("limit", "value"), [("MAX_MEMBERS", 6), ("MAX_UNPACKED_BYTES", 1000)])
def test_what_could_not_be_unpacked_is_not_packed(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(archive, limit, value)
    with pytest.raises(InputError, match=str(value)):
        pack(make(tmp_path / NAME, TREE), tmp_path / "out")


def test_an_output_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    tree = make(tmp_path / NAME, TREE)
    with pytest.raises(CalmlflowError, match="cannot be written"):
        pack(tree, tmp_path / "file")
    whole, _ = pack(tree, tmp_path / "out")
    with pytest.raises(CalmlflowError, match=r"cannot be unpacked into .*file"):
        unpack(whole, tmp_path / "file")


# -- Unpacking ------------------------------------------------------------------------------------------------------


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar_bytes(*members)))
    return path


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as zipped:
        for info, content in members:
            zipped.writestr(info, content)
    return path


def write_named(path: Path, *members: tuple[str, bytes]) -> Path:
    """An archive of either kind; a name that ends in a slash is a folder."""
    if path.suffix == ".zip":
        return write_zip(path, *members)
    infos = [
        (tar_info(name.removesuffix("/"), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE), content)
        for name, content in members
    ]
    return write_tar(path, *infos)


def refuse(path: Path, output: Path, *words: str) -> None:
    """Unpacking fails with one sentence that names the archive, and leaves nothing."""
    around = {*output.parent.rglob("*")}
    with pytest.raises(InputError) as caught:
        unpack(path, output)
    text = str(caught.value)
    assert "\n" not in text
    assert [word for word in (str(path), *words) if word not in text] == []
    assert {*output.parent.rglob("*")} - around <= {output}
    assert not output.exists() or not list(output.iterdir())


both = pytest.mark.parametrize("kind", ["tgz", "zip"])


@both
@pytest.mark.parametrize(
    "name",
    [
        *("/etc/cron.d/x", "t/../../x", "..", "../x", "t/..", "t/./x", "t//x", "C:/x", "c:x", "C:"),
        *("t\\..\\..\\x", "\\\\host\\share"),
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, kind, name):
    path = write_named(tmp_path / f"bad.{kind}", ("t/good", b"1"), (name, b"2"))
    refuse(path, tmp_path / "in" / "out", repr(name), "is no plain path")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((kind, {"linkname": "/etc/hostname"}) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)),
        *((kind, {}) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        # A sparse file.
        (tarfile.REGTYPE, {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 30)}}),
    ],
)
def test_links_and_devices_of_a_tar_archive_are_refused(tmp_path, kind, values):
    refuse(write_tar(tmp_path / "bad.tgz", (tar_info("t/bad", kind, **values), b"")), tmp_path / "out", "'t/bad'")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_of_a_zip_archive_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("t/bad")
    info.external_attr = (mode | 0o777) << 16
    refuse(write_zip(tmp_path / "bad.zip", (info, b"/etc/hostname")), tmp_path / "out", "'t/bad'", "special file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@both
@pytest.mark.parametrize(
    "members",
    [["t/x", "t/x"], ["t/", "t/x/", "t/x/"], ["t/x", "t/x/"], ["t/x", "t/x/y"], ["t/x/y", "t/x"]],
)
def test_archives_that_contradict_themselves_are_refused(tmp_path, kind, members):
    path = write_named(tmp_path / f"bad.{kind}", *((name, b"") for name in members))
    refuse(path, tmp_path / "out", repr(members[-1].removesuffix("/")))


@both
@pytest.mark.parametrize("names", [[], ["x"], ["t/x", "u/x"], ["t/x", "y"]])
def test_an_archive_without_one_folder_on_top_is_refused(tmp_path, kind, names):
    members = [(name, b"1") for name in names]
    refuse(write_named(tmp_path / f"bad.{kind}", *members), tmp_path / "out", "does not hold one folder")


def flag_encrypted(data: bytearray) -> None:
    # Bit 0 of the flags, in the header of the member and in the directory.
    for at in (6, data.index(b"PK\x01\x02") + 8):
        data[at] |= 1


def claim_ten_bytes(data: bytearray) -> None:
    data[:] = data.replace(struct.pack("<I", 10_000), struct.pack("<I", 10))


def put_zero_byte(data: bytearray) -> None:
    data[:] = data.replace(b"t/x_", b"t/x\0")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flag_encrypted, ("'t/x_'", "encrypted")),
        (claim_ten_bytes, ("'t/x_'", "expected a whole archive")),
        (put_zero_byte, (r"t/x\x00",)),
    ],
)
def test_a_zip_member_of_a_false_header_is_refused(tmp_path, damage, words):
    path = write_zip(tmp_path / "bad.zip", ("t/x_", bytes(10_000)))
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    refuse(path, tmp_path / "out", *words)


@both
def test_too_many_members_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    fine = [(f"t/{number}", b"") for number in range(3)]
    assert len(read(unpack(write_named(tmp_path / f"fine.{kind}", *fine), tmp_path / "fine"))) == 3
    path = write_named(tmp_path / f"bad.{kind}", *fine, ("t/3", b""))
    refuse(path, tmp_path / "out", "more than 3 files and folders")


@both
def test_too_many_bytes_are_refused_before_they_are_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    path = write_named(tmp_path / f"bomb.{kind}", ("t/zeros", bytes((1 << 20) + 1)))
    assert path.stat().st_size < 10_000
    refuse(path, tmp_path / "out", f"holds {(1 << 20) + 1} bytes or more", f"at most {1 << 20}")


def test_a_tar_archive_of_a_false_header_is_refused(tmp_path):
    huge = tar_info("t/huge", size=archive.MAX_UNPACKED_BYTES + 1).tobuf(tarfile.GNU_FORMAT)
    # The name of the next member, as long as the bomb.
    size = 8 << 20
    long = tar_info("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=size).tobuf(tarfile.GNU_FORMAT)
    one = tar_bytes((tar_info("t/x"), b"1"))
    for content, words in (
        (huge, str(archive.MAX_UNPACKED_BYTES + 1)),
        (long + b"t/" + b"x" * (size - 2) + one, f"a header of {size} bytes"),
        (one + one, "data after the end"),
    ):
        (tmp_path / "bad.tgz").write_bytes(gzip.compress(content))
        refuse(tmp_path / "bad.tgz", tmp_path / "out", words)


@settings(max_examples=60)
@given(st.data())
def test_an_archive_that_was_cut_short_is_refused(data):
    with new_folder() as folder:
        for path in pack(make(folder / NAME, TREE), folder):
            content = path.read_bytes()
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
            refuse(path, folder / "out", "expected a whole archive")


@settings(max_examples=60)
@given(st.data())
def test_damage_is_told_in_one_sentence_or_changes_nothing_else(data):
    with new_folder() as folder:
        for path in pack(make(folder / NAME, TREE), folder):
            content = bytearray(path.read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
                try:
                    unpack(path, folder / "out")
                except CalmlflowError as error:
                    assert str(path) in str(error)
        assert {path.name for path in folder.iterdir()} == {NAME, f"{NAME}.tar.gz", "models.zip", "out"}


@both
def test_what_is_no_archive_is_refused(tmp_path, kind):
    path = tmp_path / f"text.{kind}"
    path.write_text("not an archive")
    refuse(path, tmp_path / "out", "expected a whole archive")
    refuse(tmp_path / f"missing.{kind}", tmp_path / "out", "No such file")
    refuse(tmp_path / "models.rar", tmp_path / "out", "expected a name in .zip, .tgz, .tar.gz")


# -- An existing folder ---------------------------------------------------------------------------------------------


def test_unpacking_again_keeps_what_is_there(tmp_path):
    whole, _ = pack(make(tmp_path / NAME, TREE), tmp_path)
    inodes = []
    for _ in range(2):
        target = unpack(whole, tmp_path / "out")
        inodes.append({path: path.stat().st_ino for path in (target, *target.rglob("*"))})
    assert inodes[0] == inodes[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda target: (target / "empty.txt").write_bytes(b"1"),
        lambda target: (target / "empty.txt").unlink(),
        lambda target: (target / "results" / "mem_bin").rmdir(),
        lambda target: (target / "new").mkdir(),
        lambda target: (target / "models" / "tx_data.json").write_bytes(b"[]"),
    ],
)
def test_a_folder_of_other_content_is_refused_and_kept(tmp_path, change):
    whole, _ = pack(make(tmp_path / NAME, TREE), tmp_path)
    target = unpack(whole, tmp_path / "out")
    change(target)
    before = read(target)
    with pytest.raises(InputError, match=f"out/{NAME} is there with other content"):
        unpack(whole, tmp_path / "out")
    assert read(target) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path):
    whole, _ = pack(make(tmp_path / NAME, TREE), tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).symlink_to(tmp_path / NAME)
    with pytest.raises(InputError, match="is a symbolic link"):
        unpack(whole, tmp_path / "out")
