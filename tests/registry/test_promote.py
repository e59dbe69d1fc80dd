"""Moves between stages against the real server: one commit point, whatever is killed, and when."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.checks import Check, check_store
from calmlflow.registry.history import Event
from calmlflow.registry.overview import problems
from calmlflow.registry.promote import (
    BEGIN,
    MAX_DESCRIPTION,
    ConflictError,
    check_reason,
    choose,
    promote,
    repair,
    roll_back,
)
from calmlflow.registry.versions import read_state
from tests.conftest import free_ports
from tests.registry.conftest import NUMBERS, SOURCE, stages
from tests.samples import move_faults

OUTSIDE = "without the gate, which never judged it"
CHECKS = (Check("mem_bin.accuracy", True, "0.95", ">= 0.85"), Check("data.age", False, "no timestamps", "<= 9 days"))


def to(model: str, version: int, stage: str = "Production", **more) -> Event:
    return promote(read_state(model), version, stage, **more)


def by_hand(client, model: str, version: int, stage: str, archive: bool = True) -> None:
    client.transition_model_version_stage(
        model, str(version), stage, archive_existing_versions=archive and stage == "Production"
    )


def moves(model: str) -> list[tuple]:
    return [(event.action, event.version, event.stage, event.before) for event in read_state(model).events]


# -- Killed at every step, and two at once ----------------------------------------------------------------------------


def faults(files, what: str, *words: str) -> list[dict]:
    arguments = (what, f"faults-{next(NUMBERS)}", files.source, files.run_id, files.digest, *words)
    done = subprocess.run(
        [sys.executable, move_faults.__file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mend", ["again", "repair"])
@pytest.mark.parametrize(("action", "holder", "other"), [("promotion", 2, 1), ("rollback", 1, 2)])
def test_a_move_that_is_killed_at_any_step_is_ended(tracking, files, action, mend, holder, other):
    *killed, last = faults(files, "kill", action, mend)
    assert last["words"].startswith("done")
    # Plan or mark, a stale alias, stage, aliases, description, history.
    assert len(killed) >= 6
    before = len(killed[0]["left"]["events"])
    for line in killed:
        left, after = line["left"], line["after"]
        assert line["words"] == "killed"
        # At no moment is there no version in Production, nor two; nor does a reader of aliases find none.
        assert list(left["stages"].values()).count("Production") == 1, line
        assert left["aliases"]["production"] in (1, 2)
        assert line["said"].startswith("done"), line
        has_moved = left["stages"][str(holder)] == "Production"
        if mend == "again" or has_moved:
            assert after["stages"] == {str(holder): "Production", str(other): "Archived"}
            assert after["aliases"] == {"production": holder, "archived": other}
            run = "abc" if action == "promotion" else ""
            assert after["events"][before:] == [[action, holder, "Production", other, run]]
        else:
            # Nobody asked a repair to move anything.
            assert (after["stages"], after["events"]) == (left["stages"], left["events"])
        assert after["problems"] == []
        assert bool(left["problems"]) or not has_moved
    assert {line["left"]["stages"][str(holder)] == "Production" for line in killed} == {True, False}


@pytest.mark.slow
def test_of_two_promotions_at_once_one_is_in_production(tracking, files):
    refused = 0
    for line in faults(files, "race", "20"):
        after = line["after"]
        (holder,) = [version for version, stage in after["stages"].items() if stage == "Production"]
        assert f"done {holder}" in line["words"], line
        assert (after["aliases"]["production"], after["problems"]) == (int(holder), []), line
        lost = [words for words in line["words"] if not words.startswith("done")]
        assert all(words.startswith("ConflictError") and f"version {holder} " in words for words in lost), line
        refused += len(lost)
    assert refused


# -- Which version, and what becomes of the others --------------------------------------------------------------------


def choose_and_move(model: str, stage: str, version: int | None = None) -> int:
    """As a promotion does before and after its gate."""
    state = read_state(model)
    chosen = choose(state, version, stage).number
    promote(state, chosen, stage)
    return chosen


def add(client, model, *in_stages: str) -> None:
    """Versions 1, 2, ... in these stages."""
    for stage in in_stages:
        version = client.create_model_version(model, SOURCE, await_creation_for=0).version
        client.transition_model_version_stage(model, version, stage)


@pytest.mark.parametrize(
    ("before", "stage", "named", "chosen", "after", "aliases"),
    [
        (("Production", "None"), "Production", 2, 2, {1: "Archived", 2: "Production"},
         {"production": 2, "archived": 1}),
        (("None", "None", "Production"), "Staging", None, 2, {2: "Staging", 3: "Production"},
         {"staging": 2, "production": 3}),
        (("Staging", "Production", "None"), "Production", None, 1, {1: "Production", 2: "Archived"},
         {"production": 1, "archived": 2}),
        # Both stay there: archiving one takes no place of another.
        (("Staging", "Archived"), "Archived", 1, 1, {1: "Archived", 2: "Archived"}, {"archived": 2}),
    ],
)  # fmt: skip
def test_a_version_moves_and_the_one_before_it_is_archived(client, model, before, stage, named, chosen, after, aliases):
    add(client, model, *before)
    assert choose_and_move(model, stage, named) == chosen
    assert stages(model) == after
    assert read_state(model).aliases == aliases


def test_a_version_in_production_never_leaves_it_by_a_repeated_command(client, model):
    add(client, model, "Production")
    with pytest.raises(InputError, match="waits for Staging; expected one: train one first"):
        choose(read_state(model), None, "Staging")
    assert choose(read_state(model), None, "Production").number == 1
    for stage in ("Staging", "Archived"):
        with pytest.raises(InputError, match=f"is in Production and cannot go to {stage}"):
            choose(read_state(model), 1, stage)


def test_what_cannot_be_chosen_is_named(client, model):
    add(client, model, "None", "Archived")
    for version, stage, words in (
        (None, "Production", "waits for Production; expected one: train one first"),
        (None, "Archived", "no version was named to archive"),
        (9, "Staging", f"version 9 of {model} does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            choose(read_state(model), version, stage)


def test_aliases_of_others_are_left_alone(client, model):
    add(client, model, "None", "None")
    for alias in ("production", "staging", "of-somebody-else"):
        client.set_registered_model_alias(model, alias, 2)
    choose_and_move(model, "Production", 1)
    assert read_state(model).aliases == {"production": 1, "of-somebody-else": 2}


def test_what_moved_since_it_was_judged_is_named(client, four):
    seen = read_state(four)
    to(four, 1, reason="quick")
    with pytest.raises(ConflictError, match=r"somebody else was quicker: version 1 is in Production; expected"):
        promote(seen, 2, "Production")
    seen = read_state(four)
    by_hand(client, four, 3, "Staging")
    with pytest.raises(ConflictError, match="version 3 is in Staging; expected"):
        promote(seen, 2, "Production")
    # What was refused for another does not explain a move by hand.
    by_hand(client, four, 2, "Production")
    repaired = repair(four)
    assert f"recorded that version 2 of {four} was moved to Production {OUTSIDE}" in repaired
    # A version that was only registered changes nothing of what was judged.
    seen = read_state(four)
    client.create_model_version(four, SOURCE, await_creation_for=0)
    assert promote(seen, 4, "Production").before == 2


@pytest.mark.parametrize("step", ["delete_registered_model_alias", "transition_model_version_stage"])
def test_what_the_registry_refuses_moves_nothing_and_can_be_asked_for_again(four, step, monkeypatch):
    to(four, 1)
    to(four, 2, "Staging")
    before = read_state(four)

    def refuse(*arguments, **options):
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    with (
        monkeypatch.context() as patch,
        pytest.raises(CalmlflowError, match="expected the permission MANAGE") as caught,
    ):
        patch.setattr(MlflowClient, step, refuse)
        to(four, 2)
    assert "\n" not in str(caught.value)
    assert read_state(four).stages == before.stages
    to(four, 2)
    assert stages(four) == {1: "Archived", 2: "Production"}


# -- Rollback ---------------------------------------------------------------------------------------------------------


def test_a_history_is_complete(four):
    for version in (1, 2):
        to(four, version, reason=f"number {version}", run_id="abc", checks=CHECKS)
    roll_back(four, None, "it was slow")
    to(four, 3)
    assert stages(four) == {1: "Archived", 2: "Archived", 3: "Production"}
    assert moves(four) == [
        ("promotion", 1, "Production", None), ("promotion", 2, "Production", 1), ("rollback", 1, "Production", 2),
        ("promotion", 3, "Production", 1),
    ]  # fmt: skip
    events = read_state(four).events
    assert [event.number for event in events] == sorted({event.number for event in events})
    assert (events[1].reason, events[1].forced, events[1].run_id) == ("number 2", True, "abc")
    assert events[1].failed == ("data.age: no timestamps (expected <= 9 days)",)
    assert all(event.who and event.at.endswith("+00:00") for event in events)


def test_a_rollback_goes_back_one_step_each_time_and_never_to_one_rolled_back_from(four):
    for version in (1, 2, 3):
        to(four, version)
    assert roll_back(four, None, "bad").version == 2
    assert roll_back(four, None, "worse").version == 1
    with pytest.raises(InputError, match="knows no version in Production before 1"):
        roll_back(four, None, "no way")
    assert stages(four) == {1: "Production", 2: "Archived", 3: "Archived"}
    assert read_state(four).aliases == {"production": 1, "archived": 3}
    # Through the gate it comes back, and can be gone back to again.
    to(four, 3)
    to(four, 4)
    assert [roll_back(four, None, "x").version for _ in range(2)] == [3, 1]


def test_a_rollback_names_its_version(four):
    for version in (1, 2, 3):
        to(four, version)
    assert roll_back(four, 1, "far").version == 1
    for target, words in (
        (1, "is in Production; expected an earlier"),
        (4, "never in Production"),
        (9, "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            roll_back(four, target, "x")
    # What was passed over was left too.
    with pytest.raises(InputError, match="knows no version in Production before 1"):
        roll_back(four, None, "x")
    assert roll_back(four, 2, "still good").version == 2


def test_what_others_moved_can_be_rolled_back(client, four):
    with pytest.raises(InputError, match=r"no version of .* is in Production"):
        roll_back(four, None, "x")
    by_hand(client, four, 1, "Archived")
    by_hand(client, four, 2, "Production")
    with pytest.raises(InputError, match="name an archived version with --to"):
        roll_back(four, None, "x")
    assert roll_back(four, 1, "x").before == 2
    by_hand(client, four, 3, "Production")
    assert roll_back(four, None, "x").version == 1
    # Archived, but never in Production.
    to(four, 4, "Archived")
    with pytest.raises(InputError, match=r"version 4 of .* was never in Production"):
        roll_back(four, 4, "round the gate")


def test_a_rollback_passes_over_what_is_not_there_any_more(client, four, capsys):
    for version in (1, 2, 3, 4):
        to(four, version)
    client.delete_model_version(four, "3")
    client.set_model_version_tag(four, "2", "model_sha256", "0" * 64)
    assert roll_back(four, None, "x").version == 1
    assert f"version 2 is passed over: the files of version 2 of {four} have the SHA-256" in capsys.readouterr().err


def test_a_rollback_looks_before_it_moves(client, four, files, capsys, s3):
    """What `mlflow gc` removed is passed over, whether it was named or not."""
    source = files.source.replace("mlflow-artifacts:", f"s3://{settings.ARTIFACT_BUCKET}")
    # The store keeps the folders of removed files, and here one that nobody removed.
    left = f"{files.source}-gone/data/left".removeprefix("mlflow-artifacts:/")
    s3.put_object(Bucket=settings.ARTIFACT_BUCKET, Key=left, Body=b"")
    gone = int(client.create_model_version(four, f"{source}-gone", tags={"model_sha256": files.digest}).version)
    for version in (1, gone, 2):
        to(four, version)
    with pytest.raises(InputError, match=f"the files of version {gone} of {four} are gone"):
        roll_back(four, gone, "x")
    assert roll_back(four, None, "x").version == 1
    assert f"version {gone} is passed over: the files of" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_told_in_time(four, monkeypatch):
    monkeypatch.setattr("calmlflow.registry.checks.STORE_PATIENCE_S", 0.2)
    # A server that waits for its store.
    monkeypatch.setattr("mlflow.artifacts.list_artifacts", lambda *given, **named: time.sleep(2))
    with pytest.raises(
        CalmlflowError, match=rf"the files of version 1 of {four} cannot be listed \(no answer in 0.2 s\)"
    ):
        check_store(read_state(four).versions[1])


def test_a_rollback_that_came_too_late_leaves_no_mark(four, monkeypatch):
    for version in (1, 2):
        to(four, version)
    seen = read_state(four)
    to(four, 3)
    with monkeypatch.context() as patched:
        late = iter([seen])
        patched.setattr("calmlflow.registry.promote.read_state", lambda model: next(late, None) or read_state(model))
        with pytest.raises(ConflictError, match="version 3 is in Production"):
            roll_back(four, None, "x")
    assert roll_back(four, None, "x").version == 2


def test_a_rollback_says_why_it_does_not_go_there(client, four):
    client.create_model_version(four, SOURCE, tags={"model_sha256": "0" * 64}, await_creation_for=0)
    client.delete_model_version_tag(four, "2", "model_sha256")
    for version in (2, 5, 1):
        to(four, version)
    for number, words in ((2, "has no tag model_sha256"), (5, f"the files of version 5 of {four} are gone")):
        with pytest.raises(InputError, match=words):
            roll_back(four, number, "x")
    assert stages(four)[1] == "Production"


def test_a_rollback_needs_no_tracking_server(four, server, monkeypatch):
    for version in (1, 2):
        to(four, version)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", server.tracking_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert roll_back(four, None, "x").version == 1


# -- Repair -----------------------------------------------------------------------------------------------------------


def test_what_was_moved_without_the_gate_is_recorded_and_stays(client, four):
    to(four, 2)
    assert problems(read_state(four)) == []
    for version in (1, 3):
        by_hand(client, four, version, "Production", archive=False)
    client.set_registered_model_alias(four, "staging", "4")
    before = stages(four)
    assert len(problems(read_state(four))) == 3
    said = repair(four)
    assert said[:2] == [f"recorded that version {n} of {four} was moved to Production {OUTSIDE}" for n in (1, 3)]
    assert stages(four) == before
    assert read_state(four).aliases == {"production": 3}
    assert problems(read_state(four)) == repair(four) == []


def test_a_move_back_by_hand_is_found(client, four):
    to(four, 1)
    to(four, 2)
    by_hand(client, four, 1, "Production")
    assert "version 1 of" in problems(read_state(four))[0]
    assert repair(four)[0] == f"recorded that version 1 of {four} was moved to Production {OUTSIDE}"
    assert moves(four)[-1] == ("outside", 1, "Production", 2)


@pytest.mark.parametrize("stage", ["Archived", "None"])
def test_a_version_that_left_production_by_hand_is_recorded_and_not_brought_back(client, four, stage):
    to(four, 2)
    by_hand(client, four, 2, stage)
    (problem, _) = problems(read_state(four))
    assert f"version 2 of {four} is in {stage} and the history does not say how" in problem
    assert repair(four)[0] == f"recorded that version 2 of {four} was moved to {stage} {OUTSIDE}"
    assert read_state(four).stages[2] == stage
    assert read_state(four).aliases == ({"archived": 2} if stage == "Archived" else {"production": 2})
    assert moves(four)[-1] == ("outside", 2, stage, None)
    # In no stage, but predictors follow the alias.
    assert len(problems(read_state(four))) == (stage == "None")
    assert repair(four) == []


# -- What a version says of itself ------------------------------------------------------------------------------------


def test_tags_and_description_tell_the_move(client, four):
    client.update_model_version(four, "1", "My own words.")
    client.set_model_version_tag(four, "1", "gate.of_long_ago", "passed: 1 (2)")
    to(four, 1, reason="a <b>bold</b> | move", run_id="abc123", checks=CHECKS)
    version = client.get_model_version(four, "1")
    assert version.tags["gate"] == "forced"
    assert version.tags["gate.mem_bin.accuracy"] == "passed: 0.95 (>= 0.85)"
    assert version.tags["gate.data.age"] == "failed: no timestamps (<= 9 days)"
    assert version.tags["gate.of_long_ago"] == "not checked"
    assert version.description.startswith("My own words.\n")
    for words in (r"a \<b\>bold\</b\> \| move", "**forced**", "abc123"):
        assert words in version.description
    # Written anew, not added to.
    to(four, 2)
    roll_back(four, None, "back")
    again = client.get_model_version(four, "1").description
    assert again.count(BEGIN) == 1
    assert again.startswith("My own words.\n")
    assert "Reason: back" in again


def test_a_long_description_keeps_what_failed(client, four):
    many = tuple(Check(f"check.{n}", True, "f" * 100, "e") for n in range(60))
    to(four, 1, "Staging", checks=(*many, CHECKS[1]))
    description = client.get_model_version(four, "1").description
    assert len(description) <= MAX_DESCRIPTION
    assert "data.age" in description


@pytest.mark.parametrize(
    ("reason", "needed", "words"),
    [
        ("", "force", "expected one to be recorded with force"),
        ("x" * 501, None, "501 characters"),
        ("caf\udce9", None, r"the reason 'caf\\udce9' is not UTF-8"),
    ],
)
def test_a_reason_has_its_rules(reason, needed, words):
    with pytest.raises(InputError, match=words):
        check_reason(reason, needed)
    assert check_reason("  two \n words\x1b[2J ") == "two words [2J"
