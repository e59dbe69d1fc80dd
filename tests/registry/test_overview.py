"""The table of `calmlflow stages`, from versions of the real server: all that their tags say, and no more."""

import io
import json
import re
import time
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from calmlflow import settings
from calmlflow.cli.registry import WIDE, show_versions
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.http_client import RegistryUnavailableError
from calmlflow.predictor.registry_client import StagedVersion
from calmlflow.registry.checks import Check
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.overview import by_stage, problems, read_models
from calmlflow.registry.promote import promote
from calmlflow.registry.versions import read_state
from tests.registry.conftest import NUMBERS, SOURCE
from tests.registry.conftest import add as add_versions
from tests.samples.console_command import run_here
from tests.samples.predictor_samples import write_bundle

NETWORKS = ("mem_clf", "mem_reg", "wall_reg")
DAY_S = 86_400
SCORES = {
    "mem_bin": {"accuracy": 0.9571, "recall_2g": 1.0, "excess_cost": 0.0271},
    "memory": {"rmse": 0.3951, "mae": 0.1},
    "wallclock": {"rmse": 657.25, "mae": 240.0, "kill_time_coverage": 0.9992},
}


@pytest.fixture
def bundle(client, monkeypatch, tmp_path) -> str:
    """Name of the bundle, which does not exist yet; calmlflow has no other models in this test but two."""
    name = f"overview-test-{next(NUMBERS)}"
    monkeypatch.setattr(settings, "BUNDLE_MODEL", name)
    monkeypatch.setattr(settings, "NETWORK_MODELS", {"mem_clf": f"{name}-bin", "mem_reg": f"{name}-memory"})
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    return name


def lineage(newest_job: int) -> Lineage:
    return Lineage("s3://bucket/jobs.csv", 800, newest_job, 3, SCORES, dict(zip(NETWORKS, "abc", strict=True)))


def add(client, model, count=1, **tags) -> None:
    with suppress(MlflowException):
        client.create_registered_model(model)
    add_versions(client, model, count, tags=tags)


def overview() -> dict:
    return {model: by_stage(state) for model, state in read_models().items()}


def shown(client, width: int, most: int | None = 5) -> str:
    out = io.StringIO()
    show_versions(overview(), most, Console(file=out, width=width, highlight=False))
    return out.getvalue()


# -- What is known ----------------------------------------------------------------------------------------------------


def test_a_version_says_what_its_tags_say(client, bundle):
    newest_job = int(time.time()) - 22 * DAY_S
    add(client, bundle, gate="passed", bundle_sha256="0" * 64, **lineage(newest_job).tags(NETWORKS))
    client.transition_model_version_stage(bundle, 1, "Production")
    client.set_registered_model_alias(bundle, "production", 1)
    client.set_registered_model_alias(bundle, "good", 1)
    (entry,) = overview()[bundle]["Production"]
    created = datetime.fromisoformat(entry.pop("created"))
    assert created.utcoffset() == UTC.utcoffset(None)
    assert abs(created.timestamp() - time.time()) < 600
    assert entry == {
        "version": 1,
        "ladder": "1",
        "age_days": 0.0,
        "status": "READY",
        "data": "s3://bucket/jobs.csv",
        "jobs": 800,
        "newest_job": datetime.fromtimestamp(newest_job, UTC).date().isoformat(),
        "data_age_days": 22.0,
        "scores": SCORES,
        "runs": {"mem_clf": "a", "mem_reg": "b", "wall_reg": "c"},
        "gate": "passed",
        "aliases": ["good", "production"],
        "uri": f"models:/{bundle}/Production",
        "files_gone": False,
        "cached_here": False,
    }


def test_versions_stand_in_their_stages_the_newest_first(client, bundle):
    add(client, bundle, 12)
    add(client, f"{bundle}-memory")
    for version, stage in ((2, "Archived"), (11, "Archived"), (9, "Production"), (10, "Staging")):
        client.transition_model_version_stage(bundle, version, stage)
    found = overview()
    assert {stage: [entry["version"] for entry in entries] for stage, entries in found[bundle].items()} == {
        "Production": [9],
        "Staging": [10],
        "None": [12, 8, 7, 6, 5, 4, 3, 1],
        "Archived": [11, 2],
    }
    assert list(found[bundle]) == ["Production", "Staging", "None", "Archived"]
    assert [entry["uri"] for entry in found[bundle]["Archived"]] == [f"models:/{bundle}/11", f"models:/{bundle}/2"]
    assert found[bundle]["Staging"][0]["uri"] == f"models:/{bundle}/Staging"
    assert [entry["version"] for entry in found[f"{bundle}-memory"]["None"]] == [1]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


DAMAGED = ("x", "nan", "-inf", "9" * 400, "", "-1", "0", "1e30")


@pytest.mark.parametrize("value", [None, *DAMAGED])
def test_what_is_not_known_or_damaged_is_left_out(client, bundle, value):
    tags = {} if value is None else dict.fromkeys(("newest_job", "score.memory.rmse"), value)
    add(client, bundle, **tags | ({} if value in (None, *DAMAGED[-3:]) else {"jobs": value}))
    (entry,) = overview()[bundle]["None"]
    unknown = ("data", "jobs", "newest_job", "data_age_days", "gate")
    assert {name: entry[name] for name in unknown} == dict.fromkeys(unknown)
    assert entry["runs"] == {}
    # A score may be any number that there is.
    assert set(entry["scores"]) <= ({"memory"} if value in ("-1", "0", "1e30") else set())
    json.dumps(entry, allow_nan=False)
    assert "1" in shown(client, 200)


def test_a_version_in_the_cache_of_this_machine_is_marked(client, bundle):
    add(client, bundle, 2)
    write_bundle(Cache(settings.registry_uri()).path(StagedVersion("2", SOURCE)))
    assert [entry["cached_here"] for entry in overview()[bundle]["None"]] == [True, False]
    for width in (80, 200):
        assert shown(client, width).count("cached here") == 1


# -- For a person -----------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_version(client, bundle):
    add(client, bundle, gate="forced", **lineage(1_700_000_000).tags(NETWORKS))
    client.transition_model_version_stage(bundle, 1, "Production")
    client.set_registered_model_alias(bundle, "production", 1)
    add(client, f"{bundle}-bin", **{"score.mem_bin.accuracy": "0.9"})
    text = shown(client, 220)
    (line,) = [line for line in text.splitlines() if line.startswith(f" {bundle} ")]
    cells = re.split(r"\s{2,}", line.strip())
    assert cells[:8] == [
        *(bundle, "Production", "1 @production", "95.71%", "2.71%", "0.395 GB", "657 s", "99.92%"),
    ]
    assert cells[8:] == [
        "s3://bucket/jobs.csv 800 jobs to 2023-11-14", "0 d", "forced", f"models:/{bundle}/Production"
    ]  # fmt: skip
    (line,) = [line for line in text.splitlines() if line.startswith(f" {bundle}-bin ")]
    assert line.split() == [f"{bundle}-bin", "None", "1", "90.00%", "0", "d"]
    assert f"\n{bundle}-memory: no versions yet\n" in text


@pytest.mark.parametrize("width", [40, WIDE - 1, WIDE, 400])
def test_nothing_is_cut_off_whatever_the_width(client, bundle, width):
    add(client, bundle, gate="passed", **lineage(1_700_000_000).tags(NETWORKS))
    client.transition_model_version_stage(bundle, 1, "Staging")
    text = shown(client, width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("Staging", "95.71%", "2.71%", "0.395", "657", "99.92%", "passed", "2023-11-14"):
        assert part in text, part
    assert "…" not in text
    # Folded, but complete.
    joined = "".join(text.split())
    assert bundle in joined
    if width != WIDE:
        assert f"models:/{bundle}/Staging" in joined
        assert "s3://bucket/jobs.csv" in joined


@pytest.mark.parametrize("width", [80, 200])
def test_five_of_a_stage_are_shown_and_how_many_more_there_are(client, bundle, width):
    add(client, bundle, 7, data="of-each")
    client.transition_model_version_stage(bundle, 1, "Archived")
    text = shown(client, width)
    assert text.count("of-each") == 6
    assert f"and 1 more of {bundle} in None: --all shows them" in " ".join(text.split())
    text = shown(client, width, None)
    assert text.count("of-each") == 7
    assert "more of" not in text


@pytest.mark.parametrize("width", [80, 200])
def test_text_of_the_registry_is_shown_and_not_obeyed(client, bundle, width):
    add(client, bundle, data="[red]a[/b] \x1b[2Jb\nc", gate="[/]")
    text = shown(client, width)
    assert "[red]a[/b]" in text
    assert "[/]" in text
    assert "\x1b" not in text
    assert "b c" in text


def test_a_version_that_is_not_ready_is_marked(client, bundle):
    add(client, bundle)
    found = overview()
    found[bundle]["None"][0]["status"] = "PENDING_REGISTRATION"
    out = io.StringIO()
    show_versions(found, None, Console(file=out, width=80))
    assert "1 (PENDING_REGISTRATION)" in out.getvalue()


# -- The command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_overview(capsys, client, bundle):
    assert run_here(capsys, "stages")[:2] == (
        0,
        "".join(f"{bundle}{of}: no versions yet\n" for of in ("", "-bin", "-memory")),
    )
    add(client, bundle, 7, data="of-each")
    status, out, err = run_here(capsys, "stages", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == overview()
    # Not to a terminal: a line for each version.
    status, out, err = run_here(capsys, "stages")
    assert (status, err) == (0, "")
    assert len([line for line in out.splitlines() if bundle in line and "of-each" in line]) == 5
    assert run_here(capsys, "stages", "--all")[1].count("of-each") == 7


def test_the_command_says_what_was_moved_without_the_gate(capsys, client, bundle):
    add(client, bundle, 2)
    promote(read_state(bundle), 1, "Production", "a test", "abc", [Check("data.age", False, "9 days", "8 days")])
    assert run_here(capsys, "stages")[::2] == (0, "")
    client.transition_model_version_stage(bundle, 2, "Production", archive_existing_versions=True)
    status, out, err = run_here(capsys, "stages", "--json")
    assert status == 1
    assert [entry["version"] for entry in json.loads(out)[bundle]["Production"]] == [2]
    assert err.splitlines() == [
        f"warning: version 2 of {bundle} is in Production and the history does not say how: it was moved without the "
        "gate, which never judged it; `calmlflow stages --repair` records it",
        f"warning: aliases of {bundle} do not name the versions of their stages: production, archived; `calmlflow "
        "stages --repair` records it",
    ]
    status, out, err = run_here(capsys, "stages", "--repair", "--json")
    assert (status, err) == (
        0,
        f"recorded that version 2 of {bundle} was moved to Production without the gate, which never judged it\n",
    )
    assert [entry["aliases"] for entry in json.loads(out)[bundle]["Production"]] == [["production"]]
    assert run_here(capsys, "stages", "--repair")[::2] == (0, "nothing to repair\n")
    events = json.loads(run_here(capsys, "stages", "--history", "--model", bundle, "--json")[1])
    assert [(event["action"], event["version"], event["before"]) for event in events] == [
        ("promotion", 1, None), ("outside", 2, 1),
    ]  # fmt: skip
    lines = run_here(capsys, "stages", "--history", "--model", bundle)[1].splitlines()
    assert "version 1 to Production: forced promotion by" in lines[0]
    assert lines[1:4] == ["    a test", "    gate: run abc", "    failed: data.age: 9 days (expected 8 days)"]
    assert "version 2 to Production, in place of 1: moved without the gate, recorded by" in lines[4]


@pytest.mark.parametrize("before", [None, "Production"])
def test_an_alias_that_was_moved_is_told(capsys, client, bundle, before):
    add(client, bundle, 2)
    if before:
        promote(read_state(bundle), 1, before)
    client.set_registered_model_alias(bundle, "production", 2)
    status, _, err = run_here(capsys, "stages")
    words = (
        "aliases of {} do not name"
        if before
        else "version 2 of {} is @production and in no stage: it was moved without"
    )
    assert (status, words.format(bundle) in err) == (1, True), err


def test_a_version_whose_files_are_gone_is_marked(capsys, client, bundle, files):
    add(client, bundle)
    client.create_model_version(bundle, files.source, files.run_id, await_creation_for=0)
    for version in (1, 2):
        promote(read_state(bundle), version, "Production")
    status, out, err = run_here(capsys, "stages", "--json")
    assert (status, err) == (0, "")
    marks = {entry["version"]: entry["files_gone"] for of in json.loads(out)[bundle].values() for entry in of}
    assert marks == {1: True, 2: False}
    (line,) = [line for line in run_here(capsys, "stages")[1].splitlines() if "(files gone)" in line]
    assert "Archived" in line


def test_a_store_that_does_not_say_marks_nothing(capsys, client, bundle, monkeypatch):
    add(client, bundle)
    promote(read_state(bundle), 1, "Production")

    def get(uri: str, path: str, timeout_s: float) -> tuple[int, bytes]:
        raise RegistryUnavailableError("no answer")

    monkeypatch.setattr("calmlflow.registry.overview.get", get)
    status, out, err = run_here(capsys, "stages", "--json")
    assert (status, err) == (0, f"warning: the files of {bundle} are not looked for: no answer\n")
    assert not json.loads(out)[bundle]["Production"][0]["files_gone"]


def test_a_move_that_was_cut_short_is_told_apart(client, bundle, monkeypatch):
    add(client, bundle)
    real = MlflowClient.transition_model_version_stage

    def cut_short(*given, **named):
        real(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "transition_model_version_stage", cut_short)
        promote(read_state(bundle), 1, "Production")
    assert "its promotion was cut short" in problems(read_state(bundle))[0]


def test_the_command_names_a_model_that_has_no_history(capsys, client, bundle):
    status, out, err = run_here(capsys, "stages", "--history", "--model", bundle)
    assert (status, out) == (1, "")
    assert err == f"error: registered model {bundle} does not exist in the registry; expected a registered version\n"
    add(client, bundle)
    status, out, err = run_here(capsys, "stages", "--history", "--model", bundle)
    assert (status, out, err) == (0, "", f"no version of {bundle} was moved yet\n")


def test_no_server_is_one_sentence(capsys, monkeypatch, ports):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://user:word@127.0.0.1:{ports[0]}")
    status, out, err = run_here(capsys, "stages")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: no MLflow server answers at http://***@127.0.0.1:{ports[0]} ")
    assert len(err.splitlines()) == 1
