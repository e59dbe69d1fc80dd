"""Moves between stages against the real server: one at a time, all or nothing, whatever is killed, and when."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry import claim, moves
from calmlflow.registry.claim import Claim, ConflictError, claimed
from calmlflow.registry.describe import BEGIN, MAX_DESCRIPTION
from calmlflow.registry.history import Check, Event, close_event, read_history, way_back, write_event
from calmlflow.registry.moves import finish_open, repair
from calmlflow.registry.promote import check_reason, choose, promote, roll_back
from calmlflow.registry.versions import read_state

NUMBERS = itertools.count()
SOURCE = "s3://calcloud-artifacts/of-a-test"
CHECKS = (Check("mem_bin.accuracy", True, "0.95", ">= 0.85"), Check("data.age", False, "no timestamps", "<= 9 days"))


@pytest.fixture
def client(tracking) -> MlflowClient:
    return MlflowClient()


@pytest.fixture
def model(client) -> str:
    """A registered model of this test's own, with four versions."""
    name = f"moves-test-{next(NUMBERS)}"
    client.create_registered_model(name)
    for _ in range(4):
        client.create_model_version(name, SOURCE, await_creation_for=0)
    return name


def to(client, model, version, stage, **more) -> Event:
    return promote(client, model, version, stage, read_state(client, model), **more)


def stages(client, model) -> dict[int, str]:
    return {version: stage for version, stage in read_state(client, model).stages.items() if stage != "None"}


def tags_of_model(client, model) -> dict[str, str]:
    return client.get_registered_model(model).tags


# -- Killed at every step, and two at once ----------------------------------------------------------------------------


def faults(server, *words: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("move_faults.py"), words[0], server.tracking_uri, *words[1:]],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_USERNAME": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "mend", "holder", "other"),
    [
        ("promotion", "again", 2, 1),
        ("promotion", "repair", 2, 1),
        ("rollback", "again", 1, 2),
    ],
)
def test_a_move_that_is_killed_at_any_step_can_be_finished(server, action, mend, holder, other):
    lines = faults(server, "kill", f"moves-kill-{next(NUMBERS)}", action, mend)
    assert lines[-1]["words"] == "done"
    killed = lines[:-1]
    # Claim, ticket, event, a stale alias or two, tags, description, stage, aliases, closing, end of the claim.
    assert len(killed) >= 9
    assert all(line["words"] == "killed" for line in killed)
    for line in killed:
        # At no moment is there no version in Production, nor two.
        assert list(line["left"]["stages"].values()).count("Production") == 1, line
        assert line["left"]["aliases"]["production"] in (1, 2)
        assert "bug" not in line["said"]
        begun = any(event[0] == action and event[-1] for event in line["left"]["events"][2:])
        # A repair finishes what has begun, and does not begin anything.
        if mend == "again" or begun or line["left"]["stages"][str(holder)] == "Production":
            after = line["after"]
            assert after["stages"] == {str(holder): "Production", str(other): "Archived"}
            assert after["aliases"] == {"production": holder, "archived": other}
            assert [event[-1] for event in after["events"]] == [False] * len(after["events"])
            assert after["events"][-1][:4] == [action, holder, "Production", other]
            assert [event[0] for event in after["events"]].count(action) == {"promotion": 3, "rollback": 1}[action]
            assert {"promotion": "promoted", "rollback": "restored"}[action] in after["tags"][str(holder)]
        if mend == "repair":
            assert line["after"]["claims"] == 0
    # The kills did hit the middle of it.
    assert {line["left"]["stages"]["2"] for line in killed} == (
        {"Staging", "Production"} if action == "promotion" else {"Production", "Archived"}
    )


@pytest.mark.slow
def test_of_two_promotions_at_once_one_wins_and_the_other_is_told_why(server):
    for line in faults(server, "race", f"moves-race-{next(NUMBERS)}", "20"):
        won = [words for words in line["words"] if words.startswith("won")]
        (lost,) = [words for words in line["words"] if not words.startswith("won")]
        assert len(won) == 1, line
        winner = won[0].removeprefix("won ")
        assert lost.startswith("ConflictError"), lost
        assert "is moving a version" in lost or f"version {winner} went to Production" in lost
        after = line["after"]
        assert [version for version, stage in after["stages"].items() if stage == "Production"] == [winner]
        assert after["aliases"]["production"] == int(winner)
        assert [event[1] for event in after["events"]] == [1, 2, int(winner)]
        assert after["claims"] == 0


# -- History ----------------------------------------------------------------------------------------------------------


def test_promotion_rollback_promotion_leave_one_version_and_a_complete_history(client, model):
    for version in (1, 2):
        to(client, model, version, "Production", reason=f"number {version}", run_id="abc", checks=CHECKS, forced=True)
    roll_back(client, model, None, "it was slow")
    to(client, model, 3, "Production")
    assert stages(client, model) == {1: "Archived", 2: "Archived", 3: "Production"}
    events = read_history(client, model)
    assert [(e.number, e.action, e.version, e.before) for e in events] == [
        (1, "promotion", 1, None), (2, "promotion", 2, 1), (3, "rollback", 1, 2), (4, "promotion", 3, 1),
    ]  # fmt: skip
    assert events[1].reason, events[1].forced == ("number 2", True)
    assert (events[1].checks, events[1].run_id) == (CHECKS, "abc")
    assert not any(event.is_open for event in events)
    assert all(event.who and event.at.endswith("+00:00") for event in events)


names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30)
events = st.builds(
    Event, st.integers(1, 999_999), st.sampled_from(["promotion", "rollback"]), st.integers(1, 10_000),
    st.sampled_from(["Staging", "Production", "Archived"]), st.none() | st.integers(1, 10_000), names, names, names,
    st.booleans(), names, st.lists(st.builds(Check, names, st.booleans(), names, names), max_size=4).map(tuple),
    st.booleans(),
)  # fmt: skip


@given(events)
def test_an_event_survives_its_tag(event):
    assert Event.from_json(event.to_json()) == event


@pytest.mark.parametrize(("passed", "failed"), [(20, 0), (60, 3), (200, 3), (200, 40), (0, 400)])
def test_an_event_fits_its_tag_and_tells_what_failed(passed, failed):
    checks = [Check(f"good.{n}", True, "0.95 against 0.94", "not worse than version 12") for n in range(passed)]
    checks += [Check(f"bad.{n}", False, "x" * 300, "y" * 100) for n in range(failed)]
    event = replace(production("promotion", 2, 1), reason="ü" * 500, checks=tuple(checks))
    text = event.to_json()
    assert len(text) <= 5000
    told = Event.from_json(text).checks
    assert [check.name for check in told if not check.passed][:5] == [f"bad.{n}" for n in range(failed)][:5]
    if passed == 20:
        assert told == tuple(checks)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"number": 1}', "x" * 9, '{"checks": [[1]]}'])
def test_a_damaged_event_is_left_out_and_its_number_is_not_used_again(client, model, caplog, text):
    client.set_registered_model_tag(model, "calmlflow.history.000007", text)
    assert read_history(client, model) == []
    assert "calmlflow.history.000007" in caplog.text
    assert to(client, model, 1, "Staging").number == 8


def production(action: str, version: int, before: int | None = None) -> Event:
    return Event(1, action, version, "Production", before, "me", "now")


@pytest.mark.parametrize(
    ("moves", "stack"),
    [
        ([], []),
        ([("promotion", 1, None)], [1]),
        ([("promotion", 2, 1)], [1, 2]),
        ([("promotion", 1, None), ("promotion", 3, 2)], [1, 2, 3]),
        ([("promotion", 1, None), ("promotion", 2, 1), ("repair", 1, None)], [2, 1]),
        ([("promotion", 1, None), ("promotion", 2, 1), ("promotion", 3, 2), ("rollback", 2, 3)], [1, 2]),
        ([("promotion", 1, None), ("promotion", 2, 1), ("promotion", 3, 2), ("rollback", 1, 3)], [1]),
        ([("promotion", 1, None), ("promotion", 2, 1), ("rollback", 1, 2), ("promotion", 3, 1)], [1, 3]),
        ([("promotion", 1, None), ("promotion", 2, 1), ("rollback", 1, 2), ("promotion", 2, 1)], [1, 2]),
        ([("promotion", 1, None), ("rollback", 7, 1)], [1, 7]),
    ],
)
def test_the_way_back_leads_past_what_was_rolled_back_from(moves, stack):
    assert way_back([production(*move) for move in moves]) == stack


@given(st.lists(st.tuples(st.sampled_from(["promotion", "rollback"]), st.integers(1, 6)), max_size=20))
def test_the_way_back_ends_at_the_last_version_and_names_each_once(moves):
    stack = way_back([production(*move) for move in moves])
    assert len(stack) == len(set(stack))
    assert stack[-1:] == [version for _, version in moves][-1:]


# -- Rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_goes_back_one_step_each_time(client, model):
    for version in (1, 2, 3):
        to(client, model, version, "Production")
    assert roll_back(client, model, None, "bad").version == 2
    assert roll_back(client, model, None, "worse").version == 1
    with pytest.raises(InputError, match="knows no version in Production before 1"):
        roll_back(client, model, None, "no way")
    assert stages(client, model) == {1: "Production", 2: "Archived", 3: "Archived"}
    assert read_state(client, model).aliases == {"production": 1, "archived": 3}
    tags = client.get_model_version(model, "2").tags
    assert tags["rolled_back"].endswith(": worse")
    assert tags["restored"].endswith(": bad")


def test_a_rollback_names_its_version(client, model):
    for version in (1, 2, 3):
        to(client, model, version, "Production")
    assert roll_back(client, model, 1, "far").version == 1
    for target, words in (
        (1, "is in Production; expected an earlier"),
        (4, "never in Production"),
        (9, "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            roll_back(client, model, target, "x")
    assert stages(client, model)[1] == "Production"
    assert len(read_history(client, model)) == 4


def test_what_others_archived_can_be_gone_back_to_by_its_number(client, model):
    client.transition_model_version_stage(model, "1", "Archived")
    client.transition_model_version_stage(model, "2", "Production")
    with pytest.raises(InputError, match="name an archived version with --to"):
        roll_back(client, model, None, "x")
    assert roll_back(client, model, 1, "x").before == 2


def test_without_production_there_is_nothing_to_roll_back_from(client, model):
    with pytest.raises(InputError, match=r"no version of .* is in Production"):
        roll_back(client, model, None, "x")
    assert tags_of_model(client, model) == {}


def test_a_deleted_version_is_passed_over(client, model):
    for version in (1, 2, 3):
        to(client, model, version, "Production")
    client.delete_model_version(model, "2")
    assert roll_back(client, model, None, "x").version == 1


# -- Production never empties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["Staging", "Archived"])
def test_the_version_in_production_only_leaves_for_another(client, model, stage):
    to(client, model, 1, "Production")
    state = read_state(client, model)
    with pytest.raises(InputError, match=f"is in Production and cannot go to {stage}"):
        choose(client, model, 1, stage, state)
    with pytest.raises(InputError, match=f"is in Production and cannot go to {stage}"):
        promote(client, model, 1, stage, state)
    assert stages(client, model) == {1: "Production"}


def test_what_moved_since_it_was_judged_is_told(client, model):
    seen = read_state(client, model)
    to(client, model, 1, "Production", reason="quick")
    with pytest.raises(ConflictError, match=r"version 1 went to Production \(promotion by .* at 20.*\) meanwhile"):
        promote(client, model, 2, "Production", seen)
    seen = read_state(client, model)
    client.transition_model_version_stage(model, "3", "Staging")
    with pytest.raises(ConflictError, match="the stage of version 3 changed meanwhile"):
        promote(client, model, 2, "Production", seen)
    # A version that was only registered changes nothing of what was judged.
    seen = read_state(client, model)
    client.create_model_version(model, SOURCE, await_creation_for=0)
    assert promote(client, model, 2, "Production", seen).before == 1


# -- Claims -----------------------------------------------------------------------------------------------------------


def put_claim(client, model, **changes) -> None:
    """A claim that came first: of this very process, unless a change says otherwise."""
    first = Claim(1, "somebody", claim._machine(), os.getpid(), time.time())
    client.set_registered_model_tag(model, f"{claim.PREFIX}first", json.dumps(asdict(replace(first, **changes))))


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_who_comes_second_is_told_who_is_first(client, model):
    put_claim(client, model)
    with pytest.raises(ConflictError, match=f"somebody is moving a version of {model} right now"):
        to(client, model, 1, "Staging")
    assert stages(client, model) == {}
    assert list(tags_of_model(client, model)) == [f"{claim.PREFIX}first"]


def test_a_dead_claim_is_removed(client, model):
    for changes in (
        {"pid": dead_process()},
        {"at": time.time() - 301},
        {"machine": "another", "at": time.time() - 301},
    ):
        put_claim(client, model, **changes)
        with claimed(client, model, "me"):
            assert f"{claim.PREFIX}first" not in tags_of_model(client, model)
        assert tags_of_model(client, model) == {}
    client.set_registered_model_tag(model, f"{claim.PREFIX}x", "no claim at all")
    with claimed(client, model, "me"):
        pass
    assert tags_of_model(client, model) == {}


def test_a_claim_of_another_machine_ends_by_repair(client, model):
    put_claim(client, model, machine="another", pid=dead_process())
    with pytest.raises(ConflictError):
        to(client, model, 1, "Staging")
    assert repair(client, model) == []
    assert to(client, model, 1, "Staging").version == 1


def test_a_living_claim_of_this_machine_is_not_repaired(client, model):
    put_claim(client, model)
    with pytest.raises(ConflictError):
        repair(client, model)


def test_the_lower_ticket_wins_and_whoever_draws_one_is_waited_for(client, model, monkeypatch):
    monkeypatch.setattr(claim, "PATIENCE_S", 0.2)
    put_claim(client, model, ticket=None)
    with pytest.raises(ConflictError, match="somebody"), claimed(client, model, "me"):
        pass
    # Tickets are drawn above all others, so only one that was drawn at the same time comes after ours.
    real = client.set_registered_model_tag

    def drawn_at_the_same_time(name, key, value):
        real(name, key, value)
        found = json.loads(value)
        if found["ticket"] is not None:
            later = {**found, "who": "somebody", "ticket": found["ticket"] + 1}
            real(name, f"{claim.PREFIX}first", json.dumps(later))

    client.delete_registered_model_tag(model, f"{claim.PREFIX}first")
    monkeypatch.setattr(client, "set_registered_model_tag", drawn_at_the_same_time)
    with claimed(client, model, "me"):
        assert f"{claim.PREFIX}first" in tags_of_model(client, model)


# -- Cut short, refused, mended ---------------------------------------------------------------------------------------


def open_event(version: int, stage: str = "Production", number: int = 1) -> Event:
    return Event(number, "promotion", version, stage, None, "me", "2026-01-01T00:00:00+00:00")


def test_what_is_open_is_finished_first(client, model):
    write_event(client, model, open_event(1))
    assert [event.version for event in finish_open(client, model)] == [1]
    assert stages(client, model) == {1: "Production"}
    assert not read_history(client, model)[0].is_open
    assert finish_open(client, model) == []


def test_an_open_event_that_history_has_passed_moves_nothing(client, model):
    to(client, model, 2, "Production")
    write_event(client, model, open_event(1, number=9))
    close_event(client, model, open_event(2, number=10))
    finish_open(client, model)
    assert stages(client, model) == {2: "Production"}
    assert not any(event.is_open for event in read_history(client, model))


def test_an_open_event_of_a_deleted_version_is_taken_back(client, model, caplog):
    client.delete_model_version(model, "3")
    write_event(client, model, open_event(3))
    finish_open(client, model)
    assert read_history(client, model) == []
    assert "version 3" in caplog.text


@pytest.mark.parametrize("step", ["delete_registered_model_alias", "transition_model_version_stage"])
def test_what_the_registry_refuses_can_be_asked_for_again(client, model, step, monkeypatch):
    to(client, model, 1, "Production")
    to(client, model, 2, "Staging")
    before = read_state(client, model)

    def refuse(*arguments, **options):
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(client, step, refuse)
    with pytest.raises(CalmlflowError, match="expected the permission MANAGE") as caught:
        to(client, model, 2, "Production")
    assert "\n" not in str(caught.value)
    found = read_state(client, model)
    assert found.stages == before.stages
    assert not any(key.startswith(claim.PREFIX) for key in tags_of_model(client, model))
    # With its alias gone already, the move goes on when it is asked for again.
    monkeypatch.undo()
    finish_open(client, model)
    if read_state(client, model).stages[2] != "Production":
        assert found.events == before.events
        to(client, model, 2, "Production")
    assert read_state(client, model).aliases == {"production": 2, "archived": 1}


def test_whoever_overslept_its_lease_moves_nothing(client, model, monkeypatch):
    to(client, model, 1, "Production")
    real = moves._drop_aliases

    def oversleep(client, model, stages):
        real(client, model, stages)
        # Meanwhile its claim was taken for dead, and somebody else has made another move.
        for key in [key for key in tags_of_model(client, model) if key.startswith(claim.PREFIX)]:
            client.delete_registered_model_tag(model, key)
        client.transition_model_version_stage(model, "3", "Production", archive_existing_versions=True)

    monkeypatch.setattr(moves, "_drop_aliases", oversleep)
    with pytest.raises(ConflictError, match="was taken for dead meanwhile"):
        to(client, model, 2, "Production")
    assert stages(client, model) == {1: "Archived", 3: "Production"}


def test_a_rollback_does_not_finish_a_promotion_that_changed_nothing_yet(client, model):
    for version in (1, 2):
        to(client, model, version, "Production")
    write_event(client, model, replace(open_event(3, number=3), before=2))
    assert roll_back(client, model, None, "bad").version == 1
    assert stages(client, model) == {1: "Production", 2: "Archived"}
    assert [event.version for event in read_history(client, model)] == [1, 2, 1]


def test_a_rollback_that_was_cut_short_is_one_step_when_asked_for_again(client, model):
    for version in (1, 2, 3):
        to(client, model, version, "Production")
    event = replace(open_event(2, number=4), action="rollback", before=3)
    write_event(client, model, event)
    client.transition_model_version_stage(model, "2", "Production", archive_existing_versions=True)
    assert roll_back(client, model, None, "bad").version == 2
    assert stages(client, model) == {1: "Archived", 2: "Production", 3: "Archived"}
    assert len(read_history(client, model)) == 4


@pytest.mark.parametrize(("stage", "by_hand"), [("Production", "3"), ("Staging", "2")])
def test_what_others_did_meanwhile_is_not_undone_by_an_old_move(client, model, stage, by_hand, caplog):
    to(client, model, 1, "Production")
    write_event(client, model, replace(open_event(2, stage, number=2), before=1 if stage == "Production" else None))
    client.transition_model_version_stage(model, by_hand, "Production", archive_existing_versions=True)
    assert finish_open(client, model) == []
    assert stages(client, model) == {1: "Archived", int(by_hand): "Production"}
    assert "is given up" in caplog.text
    assert len(read_history(client, model)) == 1


def test_what_was_archived_without_having_been_in_production_does_not_get_there_by_a_rollback(client, model):
    to(client, model, 1, "Production")
    to(client, model, 2, "Archived")
    with pytest.raises(InputError, match=r"version 2 of .* was never in Production"):
        roll_back(client, model, 2, "round the gate")


def test_a_terminal_obeys_nothing_of_an_event(client, model):
    to(client, model, 1, "Staging", reason=check_reason("a\x1b[2Jb"))
    assert read_history(client, model)[0].reason == "a [2Jb"
    client.set_registered_model_tag(
        model, "calmlflow.history.000002", open_event(2).to_json().replace("me", "m\\u001be")
    )
    assert read_history(client, model)[1].who == "m e"


def test_repair_makes_one_of_two(client, model):
    to(client, model, 2, "Production")
    for version in ("1", "3"):
        client.transition_model_version_stage(model, version, "Production")
    client.set_registered_model_alias(model, "production", "1")
    client.set_registered_model_alias(model, "staging", "4")
    assert repair(client, model) == [
        f"3 versions of {model} were in Production; only version 2 is there now",
    ]
    assert stages(client, model) == {1: "Archived", 2: "Production", 3: "Archived"}
    assert read_state(client, model).aliases == {"production": 2, "archived": 3}
    assert repair(client, model) == []
    mended = read_history(client, model)[-1]
    assert (mended.action, mended.version, mended.is_open) == ("repair", 2, False)


def test_repair_brings_the_last_one_back_to_production(client, model):
    to(client, model, 2, "Production")
    client.transition_model_version_stage(model, "2", "Archived")
    assert "version 2, the last one there, is back" in repair(client, model)[0]
    assert stages(client, model) == {2: "Production"}


# -- What a version says of itself ------------------------------------------------------------------------------------


def test_tags_and_description_tell_the_move(client, model):
    client.update_model_version(model, "1", "My own words.")
    client.set_model_version_tag(model, "1", "gate.of_long_ago", "passed: 1 (2)")
    to(client, model, 1, "Production", reason="a <b>bold</b> | move", forced=True, run_id="abc123", checks=CHECKS)
    version = client.get_model_version(model, "1")
    assert version.tags["gate"] == "forced"
    assert version.tags["gate.mem_bin.accuracy"] == "passed: 0.95 (>= 0.85)"
    assert version.tags["gate.data.age"] == "failed: no timestamps (<= 9 days)"
    assert version.tags["gate.of_long_ago"] == "not checked"
    assert version.description.startswith("My own words.\n")
    assert r"a \<b\>bold\</b\> \| move" in version.description
    assert "**forced**" in version.description
    assert "abc123" in version.description
    # Written anew, not added to.
    to(client, model, 2, "Production")
    roll_back(client, model, None, "back")
    again = client.get_model_version(model, "1").description
    assert again.count(BEGIN) == 1
    assert again.startswith("My own words.\n")
    assert "Reason: back" in again


def test_a_long_description_keeps_what_failed(client, model):
    many = tuple(Check(f"check.{n}", True, "f" * 100, "e") for n in range(60))
    to(client, model, 1, "Staging", checks=(*many, CHECKS[1]))
    description = client.get_model_version(model, "1").description
    assert len(description) <= MAX_DESCRIPTION
    assert "data.age" in description


@pytest.mark.parametrize(
    ("reason", "needed", "words"),
    [("", "force", "expected one to be written down with force"), ("x" * 501, None, "501 characters")],
)
def test_a_reason_has_its_rules(reason, needed, words):
    with pytest.raises(InputError, match=words):
        check_reason(reason, needed)
    assert check_reason("  two \n words ") == "two words"
