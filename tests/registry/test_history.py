"""Moves as tags of versions: what is written can be read, and what is damaged is left out."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from calmlflow.registry.history import (
    PLANNED,
    ROLLED_BACK,
    Event,
    in_production_since,
    planned_events,
    production_order,
    recorded_events,
)
from calmlflow.registry.versions import State, Version

names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30)
events = st.builds(
    Event, st.integers(1, 999_999), st.sampled_from(["promotion", "rollback", "outside"]), st.integers(1, 10_000),
    st.sampled_from(["Staging", "Production", "Archived"]), st.none() | st.integers(1, 10_000), names, names, names,
    st.booleans(), names, st.lists(names, max_size=4).map(tuple), names, st.lists(names, max_size=4).map(tuple),
)  # fmt: skip


@given(events)
@hypothesis_settings(max_examples=30)
def test_an_event_survives_its_tag(event):
    assert recorded_events({event.tag: event.to_json()}, "v") == [event]


def move(number: int, action: str, version: int, before: int | None = None, stage: str = "Production", **more) -> Event:
    return Event(number, action, version, stage, before, "me", "now", **more)


def test_an_event_fits_its_tag_and_says_what_failed():
    failed = tuple(f"bad.{n}: " + "x" * 300 for n in range(400))
    event = move(1, "promotion", 2, reason="ü" * 500, failed=failed, undecided=failed)
    text = event.to_json()
    assert len(text) <= 5000
    assert [failed[:6] for failed in Event.from_json(text).failed] == [f"bad.{n}:" for n in range(10)]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"number": 1}', "x" * 9, '{"failed": 1}', "[" * 100_000,
     move(1, "promotion", 2).to_json().replace('"version":2', '"version":"2"'),
     move(1, "promotion", 2).to_json().replace('"stage":"Production"', '"stage":3')],
)  # fmt: skip
def test_a_damaged_event_is_left_out(text, caplog):
    assert recorded_events({"calmlflow.history.000007": text, "other": "x"}, "version 3 of m") == []
    assert planned_events({PLANNED: text}, "version 3 of m") == []
    assert "calmlflow.history.000007 of version 3 of m" in caplog.text


def test_a_terminal_obeys_nothing_of_an_event():
    text = move(1, "promotion", 2, failed=("a\x1b[2J",)).to_json().replace('"me"', '"m\\u001be\\u202e"')
    (event,) = recorded_events({"calmlflow.history.000001": text}, "v")
    assert (event.who, event.failed) == ("m e ", ("a [2J",))


@pytest.mark.parametrize(
    ("moves", "order"),
    [
        ([], []),
        ([(1, None), (2, 1)], [1, 2]),
        # Found there, and brought there by no event.
        ([(2, 1)], [1, 2]),
        ([(1, None), (3, 2)], [1, 2, 3]),
        ([(1, None), (2, 1), (1, 2)], [2, 1]),
    ],
)
def test_versions_that_were_in_production_in_order(moves, order):
    events = [move(number, "promotion", *moved) for number, moved in enumerate(moves, 1)]
    assert production_order([*events, move(9, "promotion", 7, stage="Staging")]) == order


@pytest.mark.parametrize("more", ["", ',"ladder":{"version":2}', ',"approved_by":"a","self":3'])
def test_an_event_of_an_earlier_or_a_later_release_is_read(more, caplog):
    event = move(1, "promotion", 2)
    assert recorded_events({event.tag: event.to_json().replace(',"undecided":[]', more)}, "v") == [event]
    assert caplog.text == ""


def test_versions_that_were_in_production_within_a_time():
    def at(number: int, day: int, version: int, stage: str = "Production", zone: str = "+00:00") -> Event:
        event = move(number, "promotion", version, stage=stage)
        return replace(event, at=f"2026-01-{day:02d}T00:00:00{zone}")

    told = [at(1, 1, 1), at(2, 10, 2), at(3, 15, 9, "Staging"), at(4, 20, 3, zone="")]
    # Version 2 left Production on the 20th.
    assert [in_production_since(told, datetime(2026, 1, day, tzinfo=UTC)) for day in (5, 15, 25)] == [
        {1, 2, 3}, {2, 3}, {3},
    ]  # fmt: skip
    assert in_production_since([replace(event, at="?") for event in told], datetime(2026, 1, 25, tzinfo=UTC)) == {
        1,
        2,
        3,
    }
    assert in_production_since([], datetime(2026, 1, 25, tzinfo=UTC)) == set()


def state(stages: dict[int, str], tags: dict[int, dict[str, str]]) -> State:
    versions = {n: Version("m", n, stage, "READY", "", "", "", 0, tags.get(n, {})) for n, stage in stages.items()}
    return State("m", versions, {})


def recorded(*events: Event) -> dict[str, str]:
    return {event.tag: event.to_json() for event in events}


def test_what_the_history_says_of_a_version():
    one, two, staged = move(1, "promotion", 1), move(3, "promotion", 2, 1), move(2, "promotion", 2, stage="Staging")
    tags = {1: recorded(one), 2: recorded(staged, two)}
    assert state({1: "Archived", 2: "Production"}, tags).unrecorded() == []
    assert [v.number for v in state({1: "Production", 2: "Archived"}, tags).unrecorded()] == [1]
    # A version left Staging by its own promotion; somebody put it back.
    assert [v.number for v in state({1: "Archived", 2: "Staging"}, tags).unrecorded()] == [2]
    assert state({1: "Archived", 2: "Production"}, tags).next_number == 4


def test_what_was_planned_explains_the_move_that_came_next_and_no_later_one():
    one, plan = move(1, "promotion", 1), move(2, "promotion", 2, 1)
    stages = {1: "Archived", 2: "Production", 3: "Archived"}
    tags = {1: recorded(one), 2: {PLANNED: plan.to_json()}}
    assert state(stages, tags).cut_short(2) == plan
    assert state(stages, tags | {3: recorded(move(2, "promotion", 3, 1))}).cut_short(2) is None
    assert state(stages, {1: recorded(one)}).cut_short(2) is None
    back = move(3, "rollback", 1, 2)
    tags[2] = recorded(plan) | {ROLLED_BACK: back.to_json()}
    left = state({1: "Production", 2: "Archived"}, tags)
    assert (left.cut_short(1), left.was_rolled_back(2), left.was_rolled_back(1)) == (back, True, False)
    tags[2] |= recorded(move(4, "promotion", 2, 1))
    assert not state({1: "Archived", 2: "Production"}, tags).was_rolled_back(2)
