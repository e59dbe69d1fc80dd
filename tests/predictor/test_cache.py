"""A version is fetched once, checked, and kept whole, whatever the server, the disk or another process does."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.cache import LEFT_BEHIND_S, RETRY_S, Cache
from calmlflow.predictor.manifest import write_manifest
from calmlflow.predictor.registry_client import RegistryUnavailableError, StagedVersion
from tests.samples.predictor_samples import FILES, PLACE, files_of, http_registry, source, write_bundle

JOB = [[17, 10, 1, 0, 0, 0, 0, 1, 0]]
VERSION = StagedVersion("3", source("3"))


def wallclock(bundle) -> float:
    return bundle.predict(JOB)["wall_pred"][0]


@pytest.fixture
def published(tmp_path):
    """The files of version 3, where a tracking server has them."""
    return write_bundle(tmp_path / "published")


@pytest.fixture
def server(published, monkeypatch, tmp_path):
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http_registry({FILES: files_of(published)}) as found:
        yield found


def kept(cache) -> list[str]:
    """What lies in a cache beside its locks, and what the next try needs to know of one that failed."""
    names = [path.name for path in cache.folder.iterdir() if path.suffix != ".lock"]
    return sorted(name for name in names if not name.startswith((".failed-", ".partial-")))


def test_a_version_is_fetched_once_and_answers_from_disk_after(server, published):
    first = wallclock(Cache(server.uri).load(VERSION, 5))
    shutil.rmtree(published)
    server.queries.clear()
    cache = Cache(server.uri)
    assert wallclock(cache.load(VERSION, 5)) == first
    assert server.queries == []
    assert kept(cache) == [VERSION.folder]


@pytest.mark.parametrize("file", ["bundle.json", "mem_reg/mem_reg.onnx"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_damaged_copy_is_fetched_again(server, file, is_gone):
    cache = Cache(server.uri)
    expected = wallclock(cache.load(VERSION, 5))
    path = cache.path(VERSION) / file
    content = path.read_bytes()
    path.unlink()
    if not is_gone:
        path.write_bytes(content[:-1])
    assert cache.load_kept(VERSION) is None
    assert wallclock(cache.load(VERSION, 5)) == expected
    assert path.read_bytes() == content
    assert kept(cache) == [VERSION.folder]


def test_a_bundle_that_is_not_the_registered_one_is_never_run(server, published):
    digest = hashlib.sha256((published / "bundle.json").read_bytes()).hexdigest()
    registered = StagedVersion("3", source("3"), digest)
    cache = Cache(server.uri)
    expected = wallclock(cache.load(registered, 5))
    cache.remember("Production", registered)
    assert cache.recall("Production")[0].sha256 == digest
    # Whole in itself, but another one: first in the cache, then in the artifact store too.
    shutil.rmtree(cache.path(registered))
    write_bundle(cache.path(registered), seed=1)
    assert cache.load_kept(registered) is None
    assert wallclock(cache.load(registered, 5)) == expected
    shutil.rmtree(cache.path(registered))
    write_bundle(published, seed=1)
    with pytest.raises(InputError, match=f"of version 3 has the SHA-256 .*; expected {digest[:12]}"):
        cache.load(registered, 5)
    assert not cache.path(registered).exists()


DAMAGED = {
    "cut": lambda content: (200, content[:-9]),
    "broken off": lambda content: (200, content[:-9], 9),
    "flipped": lambda content: (200, content[:-1] + bytes([content[-1] ^ 1])),
    "gone": lambda content: (404, b""),
    "failing": lambda content: (500, b"oops"),
    "moved": lambda content: (302, b""),
    "late": lambda content: None,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_download_that_is_not_whole_is_refused_and_leaves_nothing(server, published, monkeypatch, damage):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.3")
    whole = files_of(published)
    server.answers[FILES] = lambda query: (
        DAMAGED[damage](whole(query)[1]) if query["path"][0].endswith("wall_reg.onnx") else whole(query)
    )
    cache = Cache(server.uri)
    with pytest.raises(CalmlflowError, match="IncompleteRead" if damage == "broken off" else "version 3|no answer"):
        cache.load(VERSION, 5)
    assert kept(cache) == []
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "5")
    server.answers[FILES] = whole
    assert wallclock(cache.load(VERSION, 5)) > 0


def test_a_file_without_end_is_not_read_to_its_end(server, published, monkeypatch):
    monkeypatch.setattr("calmlflow.predictor.registry_client.MAX_BYTES", 400)
    with pytest.raises(RegistryUnavailableError, match="more than 400 bytes"):
        Cache(server.uri).load(VERSION, 5)


def test_a_bundle_that_lacks_a_network_is_refused(server, published):
    shutil.rmtree(published / "mem_reg")
    write_manifest(published)
    with pytest.raises(InputError, match=r"version 3: mem_reg/mem_reg\.onnx is not listed"):
        Cache(server.uri).load(VERSION, 5)


def test_a_store_that_the_server_does_not_enter_is_told_where_there_is_no_mlflow(server, monkeypatch):
    server.answers[FILES] = 500, b"no credentials"
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(RegistryUnavailableError, match=r"gave no bundle\.json, and .* without mlflow"):
        Cache(server.uri).load(VERSION, 5)


def test_a_store_that_the_server_does_not_enter_is_entered_with_mlflow(server, published, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    # MLflow looks a version up on the server of the process, whatever registry it is told of.
    mlflow.set_registry_uri(server.uri)
    server.answers[FILES] = 500, b"no credentials"
    published.rename(published.parent / "bundle")
    shutil.copytree(published.parent / "bundle", published / "artifacts" / "bundle")
    place = f"file://{published}"
    server.answers[PLACE] = 200, json.dumps({"artifact_uri": place}).encode()
    version = {"name": "calcloud-predictor", "version": "3", "source": place, "status": "READY"}
    server.answers["/api/2.0/mlflow/model-versions/get"] = 200, json.dumps({"model_version": version}).encode()
    registered = b'{"registered_model": {"name": "calcloud-predictor"}}'
    server.answers["/api/2.0/mlflow/registered-models/get"] = 200, registered
    assert wallclock(Cache(server.uri).load(VERSION, 5)) > 0
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def test_who_is_in_a_hurry_does_not_try_again_what_has_just_failed(server, published):
    cache = Cache(server.uri)
    server.answers[FILES] = 404, b""
    with pytest.raises(RegistryUnavailableError, match="cannot be downloaded"):
        cache.load(VERSION, 5, hurried=True)
    server.answers[FILES] = files_of(published)
    with pytest.raises(RegistryUnavailableError, match="the last fetch of version 3 failed"):
        cache.load(VERSION, 5, hurried=True)
    long_ago = time.time() - RETRY_S - 1
    (failed,) = cache.folder.glob(".failed-*")
    os.utime(failed, (long_ago, long_ago))
    assert wallclock(cache.load(VERSION, 5, hurried=True)) > 0


def test_a_slow_artifact_store_costs_the_timeout_and_no_file_twice(server, published):
    for network in ("mem_clf", "mem_reg", "wall_reg"):
        (published / network / f"{network}.keras").write_bytes(b"for further training")
    write_manifest(published)
    listed = (published / "bundle.json").read_bytes()
    registered = StagedVersion("3", source("3"), hashlib.sha256(listed).hexdigest())
    whole, cache, tries = files_of(published), Cache(server.uri), 0
    read = {"bundle.json", *(name for name in json.loads(listed)["sha256"] if ".keras" not in name)}

    def slowly(query):
        time.sleep(0.3)
        return whole(query)

    server.answers[FILES] = slowly
    while not cache.path(registered).exists():
        tries += 1
        began = time.monotonic()
        with contextlib.suppress(RegistryUnavailableError):
            assert wallclock(cache.load(registered, 0.5)) > 0
        assert time.monotonic() - began < 1
        # Each gets one file further, although that takes most of its time.
        assert tries <= len(read)
    asked = [query["path"][0].removeprefix("artifacts/bundle/") for path, query in server.queries]
    assert set(asked) == read
    # The file that was on its way when the time was over is asked for again.
    assert len(asked) <= len(set(asked)) + tries - 1
    assert not list(cache.folder.glob(".partial-*"))


def test_a_slow_artifact_store_is_told_from_a_slow_registry(server):
    server.answers[FILES] = None
    with pytest.raises(RegistryUnavailableError, match=r"its artifact store gave no \S+ in time.*CALMLFLOW_TIMEOUT"):
        Cache(server.uri).load(VERSION, 0.1)


def test_a_copy_that_may_not_be_read_is_as_good_as_none(server, monkeypatch, caplog):
    cache = Cache(server.uri)
    cache.load(VERSION, 5)

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the system's refusal is made here.
    monkeypatch.setattr("pathlib.Path.is_dir", forbidden)
    assert cache.load_kept(VERSION) is None
    assert "cannot be used ([Errno 13] Permission denied)" in caplog.text


def test_a_version_of_a_registry_that_was_set_up_anew_is_another(server):
    elsewhere = StagedVersion("3", "elsewhere")
    write_bundle(Cache(server.uri).path(elsewhere), seed=5)
    assert wallclock(Cache(server.uri).load(VERSION, 5)) != wallclock(Cache(server.uri).load(elsewhere, 5))


def test_many_at_once_fetch_once(server):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: wallclock(Cache(server.uri).load(VERSION, 5)), range(8)))
    assert len(set(found)) == 1
    assert [query["path"][0] for path, query in server.queries].count("artifacts/bundle/bundle.json") == 1


def test_who_waits_for_another_until_its_time_is_over_is_told(server):
    cache = Cache(server.uri)
    with cache.alone("fetch", time.monotonic()), pytest.raises(RegistryUnavailableError, match="another process"):
        Cache(server.uri).load(VERSION, 0.1)
    assert server.queries == []


def test_a_disk_that_cannot_be_written_costs_the_cache_and_not_the_answer(server, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(server.uri, tmp_path / "file" / "cache")
    assert wallclock(cache.load(VERSION, 5)) > 0
    cache.remember("Production", VERSION)
    assert "CALMLFLOW_CACHE" in caplog.text
    assert "Production.json cannot be written" in caplog.text


# -- Notes and old versions -------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    found = Cache("http://one", tmp_path)
    found.folder.mkdir()
    return found


def version(number: int) -> StagedVersion:
    return StagedVersion(str(number), f"s{number}")


def test_what_a_stage_held_is_remembered_and_what_it_held_before(cache, tmp_path):
    assert cache.recall("Production") == []
    for number in (1, 2, 2, 3):
        cache.remember("Production", version(number))
    cache.remember("Staging", version(4))
    assert Cache("http://one", tmp_path).recall("Production") == [version(3), version(2)]
    assert cache.recall("Staging") == [version(4)]
    assert cache.recall("Archived") == []
    assert kept(cache) == ["Production.json", "Staging.json"]


@pytest.mark.parametrize(
    ("held", "expected"),
    [((2, 3, 2), [2]), ((3, 5, 4), [4, 3]), ((1, 4, 2), [2, 1]), ((2, 3, 2, 4), [4, 2])],
)
def test_the_version_that_a_stage_was_rolled_back_from_is_not_kept_to_answer(cache, held, expected):
    for number in held:
        cache.remember("Production", version(number))
    assert cache.recall("Production") == [version(number) for number in expected]


def test_a_cache_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALMLFLOW_CACHE", "cache")
    found = Cache("http://one")
    monkeypatch.chdir("/")
    assert found.folder.parent == tmp_path / "cache"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"versions": [{"version": "1"}]}', b"\xff\xfe", b"[" * 9999])
def test_a_damaged_note_is_none_and_is_written_anew(cache, content):
    (cache.folder / "Production.json").write_bytes(content)
    assert cache.recall("Production") == []
    # The versions that it named are not known, so none is removed.
    write_bundle(cache.path(version(7)))
    cache.remember("Staging", version(1))
    assert cache.path(version(7)).is_dir()
    cache.remember("Production", version(2))
    assert cache.recall("Production") == [version(2)]


def test_old_versions_go_and_those_that_a_stage_may_need_stay(cache):
    for number in range(1, 7):
        write_bundle(cache.path(version(number)), number)
    somebodys = cache.folder / "12-notes"
    somebodys.mkdir()
    cache.remember("Staging", version(5))
    for number in (1, 2, 3):
        write_bundle(cache.path(version(number)), number)
        cache.remember("Production", version(number))
    expected = [version(number).folder for number in (2, 3, 5)]
    assert kept(cache) == sorted([*expected, "12-notes", "Production.json", "Staging.json"])


def test_what_killed_processes_left_behind_goes_after_some_time(cache):
    long_ago = time.time() - LEFT_BEHIND_S - 60
    for name in (".fetch-old", ".fetch-new", ".old-old"):
        (cache.folder / name / "deep").mkdir(parents=True)
    (cache.folder / ".note-old").write_text("{")
    for path in cache.folder.glob(".*-old"):
        os.utime(path, (long_ago, long_ago))
    cache.remember("Production", version(1))
    assert kept(cache) == [".fetch-new", "Production.json"]
