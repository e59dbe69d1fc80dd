import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.predictor.evidence import (
    DEFAULT_STRENGTH,
    HALF_LIFE_DAYS,
    LEVELS,
    MIN_RUNS,
    NEVER,
    STRENGTHS,
    Evidence,
    Finished,
    build_evidence,
    fit_campaign,
    fit_strength,
)

DAY = 86_400
NO_SHIFT = np.zeros((4, 2))
ROW = (3.0, 40.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 3.0)
OTHER_ROW = (4.0, 55.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 3.0)
# What networks say of any job: 0.9 of the lowest rung, 1 GB, 200 s.
NETWORKS = np.array([0.9, 0.08, 0.015, 0.005, np.log(1.0), np.log(200.0)])


def finished(*jobs):
    """Jobs as (name, row, GB, s) or (name, row, GB, s, timestamp)."""
    names, rows, memory, wallclock, *times = zip(*jobs, strict=True) if jobs else ((), np.empty((0, 9)), (), ())
    return Finished(
        np.array(rows, dtype=float),
        list(names),
        np.array(memory, dtype=float),
        np.array(wallclock, dtype=float),
        np.array(times[0] if times else [1_000_000] * len(names), dtype=np.int64),
    )


def strength_of(**levels):
    """Strengths of levels, the same for each kind; the others correct nothing."""
    return np.array([[levels.get(level, NEVER)] * 3 for level in LEVELS], dtype=float)


def asked(evidence, name, row=ROW, networks=NETWORKS, **more):
    return evidence.correct(networks[None], np.array([row]), [name], **more).answers[0]


@st.composite
def worlds(draw):
    """Some finished jobs of few programmes, visits and rows; each dataset ran once."""
    job = st.tuples(
        st.sampled_from(["iaaa01", "iaaa02", "iaab01", "ibbb07"]),
        st.sampled_from([ROW, OTHER_ROW]),
        st.floats(0.2, 60),
        st.floats(1, 1e5),
    )
    drawn = draw(st.lists(job, min_size=2, max_size=14))
    return finished(*((f"{visit}{number:02d}q", *rest) for number, (visit, *rest) in enumerate(drawn)))


def without(jobs, places):
    kept = np.delete(np.arange(len(jobs.names)), places)
    return Finished(
        jobs.features[kept], [jobs.names[k] for k in kept], jobs.memory_gb[kept], jobs.wallclock_s[kept],
        jobs.timestamp[kept],
    )  # fmt: skip


# -- Answers ----------------------------------------------------------------------------------------------------------


def test_tables_of_no_jobs_leave_the_networks_answer():
    evidence = build_evidence(finished(), DEFAULT_STRENGTH, NO_SHIFT)
    corrected = evidence.correct(NETWORKS[None], np.array([ROW]), ["iaaa01abq"], at=2e9)
    assert np.array_equal(corrected.answers, NETWORKS[None])
    assert not corrected.jobs.any()


def test_each_level_counts_its_jobs_against_its_strength():
    jobs = finished(("iaaa01abq", ROW, 1.0, 400.0), ("iaaa01acq", ROW, 9.0, 400.0), ("iaaa02abq", ROW, 1.0, 100.0))
    by_programme = build_evidence(jobs, strength_of(programme=2.0), NO_SHIFT)
    answer = asked(by_programme, "iaaa03abq")
    # Three jobs of the programme, two of the lowest rung and one of the third, against two of the networks.
    assert answer[:4] == pytest.approx((np.array([2, 0, 1, 0]) + 2 * NETWORKS[:4]) / 5, abs=1e-5)
    assert answer[5] == pytest.approx((np.log(400 * 400 * 100) + 2 * np.log(200)) / 5, abs=1e-5)
    by_visit = build_evidence(jobs, strength_of(visit=1.0), NO_SHIFT)
    assert asked(by_visit, "iaaa01adq")[5] == pytest.approx((2 * np.log(400) + np.log(200)) / 3, abs=1e-5)
    assert asked(by_visit, "iaaa03abq")[5] == pytest.approx(np.log(200), abs=1e-5)
    by_run = build_evidence(jobs, strength_of(run=1.0), NO_SHIFT)
    assert asked(by_run, "iaaa02abq")[5] == pytest.approx((np.log(100) + np.log(200)) / 2, abs=1e-5)


def test_a_programme_of_many_jobs_does_not_speak_for_its_row():
    many = [(f"iaaa{n:02d}abq", ROW, 1.0, 1000.0) for n in range(50)]
    strength = strength_of(row=1.0)
    strength[LEVELS.index("programme")] = 1.0
    evidence = build_evidence(finished(*many, ("ibbb01abq", ROW, 1.0, 100.0)), strength, NO_SHIFT)
    # Their weights are 50/51 and 1/2.
    mean = (50 / 51 * np.log(1000) + np.log(100) / 2) / (50 / 51 + 1 / 2)
    share = (50 / 51 + 1 / 2) / (50 / 51 + 1 / 2 + 1)
    assert asked(evidence, "iccc01abq")[5] == pytest.approx(share * mean + (1 - share) * np.log(200), abs=1e-5)


@pytest.mark.parametrize(("name", "row"), [("iaab01abq", ROW), ("iaaa01abq", OTHER_ROW)])
def test_jobs_of_another_programme_or_row_are_not_kin(name, row):
    evidence = build_evidence(
        finished(("iaaa01abq", ROW, 20.0, 4000.0)), strength_of(programme=0.1, visit=0.1, run=0.1), NO_SHIFT
    )
    assert asked(evidence, name, row) == pytest.approx(NETWORKS, abs=1e-4)


@given(worlds())
def test_without_names_programme_visit_and_run_do_not_count(jobs):
    evidence = build_evidence(jobs, DEFAULT_STRENGTH, np.full((4, 2), 0.2))
    networks = np.tile(NETWORKS, (len(jobs.names), 1))
    nameless, named = (evidence.correct(networks, jobs.features, names) for names in (None, jobs.names))
    assert np.allclose(nameless.answers, named.steps[1 + LEVELS.index("campaign")], rtol=0, atol=1e-12)
    assert not nameless.jobs[:, 1:].any()


@given(worlds(), st.booleans())
def test_a_job_left_out_is_answered_as_by_tables_without_it(jobs, of_one_day):
    strength = np.array([[0.5, 0.7, 0.3], [20] * 3, [0.25, 0.06, 0.5], [2, 0.06, 4], [0.5, 1, 0.5]])
    networks = np.tile(NETWORKS, (len(jobs.names), 1))
    evidence = build_evidence(jobs, strength, NO_SHIFT)
    at = None if of_one_day else 1_000_000 + DAY
    left_out = evidence.correct(networks, jobs.features, jobs.names, jobs.observed(), at=at)
    for place, name in enumerate(jobs.names):
        rest = replace(build_evidence(without(jobs, place), strength, NO_SHIFT), newest=evidence.newest)
        expected = rest.correct(networks[:1], jobs.features[place : place + 1], [name], at=at)
        assert np.allclose(left_out.answers[place], expected.answers[0], rtol=0, atol=2e-4)
        assert np.array_equal(left_out.jobs[place], expected.jobs[0])


@given(worlds())
def test_with_the_whole_programme_left_out_only_other_programmes_count(jobs):
    networks = np.tile(NETWORKS, (len(jobs.names), 1))
    evidence = build_evidence(jobs, DEFAULT_STRENGTH, NO_SHIFT)
    left_out = evidence.correct(networks, jobs.features, jobs.names, jobs.observed(), whole_programme=True)
    for place, name in enumerate(jobs.names):
        kin = [other for other, theirs in enumerate(jobs.names) if theirs[:4] == name[:4]]
        rest = build_evidence(without(jobs, kin), DEFAULT_STRENGTH, NO_SHIFT)
        expected = rest.correct(networks[:1], jobs.features[place : place + 1], [name])
        assert np.allclose(left_out.answers[place], expected.answers[0], rtol=0, atol=2e-4)
        assert np.array_equal(left_out.jobs[place], expected.jobs[0])


def test_a_job_that_the_tables_do_not_hold_is_not_left_out():
    jobs = finished(("iaaa01abq", ROW, 1.0, 400.0), ("iaaa01acq", ROW, 1.0, 400.0))
    evidence = build_evidence(jobs, DEFAULT_STRENGTH, NO_SHIFT)
    new = finished(("iaaa01adq", ROW, 5.0, 900.0))
    assert np.array_equal(asked(evidence, "iaaa01adq", observed=new.observed()), asked(evidence, "iaaa01adq"))


@given(
    st.sampled_from([(1000.0, 1e7), (0.2, 1.0), (1000.0, 1.0)]),
    st.sampled_from(["iaaa01abq", "iaaa01acq", "iaaa02abq", "ibbb01abq"]),
    st.sampled_from([DEFAULT_STRENGTH, np.full((5, 3), min(STRENGTHS))]),
)
def test_an_absurd_record_moves_its_kin_by_a_bounded_factor(took, name, strength):
    evidence = build_evidence(finished(("iaaa01abq", ROW, *took)), strength, NO_SHIFT)
    corrected = evidence.correct(NETWORKS[None], np.array([ROW]), [name])
    for before, after, level in zip(corrected.steps, corrected.steps[1:], LEVELS, strict=False):
        weight = 1 / (1 + strength[LEVELS.index(level), 1:])
        largest = np.log(2 if level == "run" else 4)
        kept_near = np.abs(np.abs(after - NETWORKS)[0, 4:] - np.log(4)) < 1e-9
        assert np.all((np.abs(after - before)[0, 4:] <= largest * weight + 1e-6) | kept_near)
        assert after[0, :4].min() > 0 and after[0, :4].sum() == pytest.approx(1)
    # Programme, visit and run hold the same record: together they move no further than one of full weight.
    assert np.all(np.abs(corrected.answers - NETWORKS)[0, 4:] <= np.log(4) + 1e-9)


def test_the_newest_run_of_a_dataset_is_its_last():
    runs = finished(*(("iaaa01abq", ROW, 1.0, seconds, time) for seconds, time in ((900, 5), (300, 9), (700, 7))))
    evidence = build_evidence(finished(), strength_of(run=1.0), NO_SHIFT, runs)
    assert evidence.last_run(ROW, "iaaa01abq") == pytest.approx((1.0, 300.0))
    assert evidence.last_run(OTHER_ROW, "iaaa01abq") is None


def test_the_share_of_its_datasets_among_other_jobs_is_told():
    names = [f"iaaa01{number:02d}q" for number in range(4)]
    evidence = build_evidence(finished(*((name, ROW, 1.0, 100.0) for name in names)), strength_of(row=1), NO_SHIFT)
    others = finished(*((name, ROW, 2.0, 200.0) for name in [*names[:3], "ibbb0101q"]))
    assert evidence.share_in(others) == 0.75
    assert build_evidence(finished(), strength_of(row=1), NO_SHIFT).share_in(others) == 1.0


def test_before_the_newest_job_the_shift_of_its_campaign_counts_less():
    evidence = build_evidence(finished(("iaaa01abq", ROW, 4.0, 800.0)), strength_of(), np.full((4, 2), 0.3))
    for more, shift in (({}, 0.3), ({"at": 9e9}, 0.3), ({"at": 1_000_000 - HALF_LIFE_DAYS * DAY}, 0.15)):
        assert (asked(evidence, "ibbb01abq", **more) - NETWORKS)[4:] == pytest.approx([shift] * 2, abs=1e-4)


def test_kill_times_count_on_no_programme_where_the_dataset_ran_before():
    evidence = build_evidence(finished(*((f"iaaa01{n}bq", ROW, 4.0, 800.0) for n in "abc")), strength_of(), NO_SHIFT)
    names = ["iaaa01abq", "iaaa01xbq", "ibbb01abq"]
    corrected = evidence.correct(np.tile(NETWORKS, (3, 1)), np.array([ROW] * 3), names)
    assert corrected.jobs[:, 1].tolist() == [3, 3, 0]
    assert corrected.in_programme.tolist() == [0, 3, 0]


def test_kinds_without_a_network_stay_without_an_answer():
    evidence = build_evidence(finished(("iaaa01abq", ROW, 1.0, 400.0)), DEFAULT_STRENGTH, NO_SHIFT)
    answer = asked(evidence, "iaaa01acq", networks=np.where(np.arange(6) == 4, NETWORKS, np.nan))
    assert np.isnan(answer).tolist() == [True, True, True, True, False, True]


def test_the_known_rows_are_told_with_their_jobs():
    jobs = finished(*((f"iaaa{n:02d}abq", row, 1.0, 400.0) for n, row in enumerate([ROW, ROW, OTHER_ROW])))
    rows, count, means = build_evidence(jobs, DEFAULT_STRENGTH, NO_SHIFT).known_rows()
    assert {(tuple(row), n) for row, n in zip(rows.tolist(), count, strict=True)} == {(ROW, 2), (OTHER_ROW, 1)}
    assert np.exp(means[:, 4:]) == pytest.approx(np.array([[1.0, 400.0]] * 2), rel=1e-5)


# -- Strengths and campaigns ------------------------------------------------------------------------------------------


def archive(programmes=60, visits=3, jobs=3, sd=(0.0, 0.0, 0.0), seed=0, at=1_000_000):
    """Jobs of one row whose ln s has a standard deviation between programmes, visits and jobs."""
    generator = np.random.default_rng(seed)
    shapes = (programmes, 1, 1), (programmes, visits, 1), (programmes, visits, jobs)
    of_programme, of_visit, of_job = (generator.normal(0, one, shape) for one, shape in zip(sd, shapes, strict=True))
    seconds = np.exp(np.log(200) + of_programme + of_visit + of_job)
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return finished(
        *(
            (f"i{letters[p // 36]}{letters[p % 36]}a{v:02d}{j:02d}q", ROW, 1.0, seconds[p, v, j], at)
            for p in range(programmes) for v in range(visits) for j in range(jobs)
        )
    )  # fmt: skip


def both(first, second):
    fields = Finished.__dataclass_fields__
    return Finished(*(np.concatenate([getattr(first, field), getattr(second, field)]) for field in fields))


def same_answers(jobs):
    return np.tile(NETWORKS, (len(jobs.names), 1))


WALLCLOCK = 2


@pytest.mark.parametrize(
    ("sd", "visits", "jobs", "level", "ratio"),
    [
        ((0.6, 0.0, 0.3), 2, 1, "programme", 0.25),
        ((0.2, 0.0, 0.4), 2, 1, "programme", 4),
        ((0.0, 0.6, 0.3), 9, 2, "visit", 0.25),
    ],
)
def test_the_fitted_strength_is_the_variance_within_over_the_variance_between(sd, visits, jobs, level, ratio):
    many = archive(600, visits, jobs, sd)
    fitted = fit_strength(same_answers(many), many)[LEVELS.index(level), WALLCLOCK]
    assert ratio / 2.5 <= fitted <= ratio * 2.5


def test_levels_that_tell_nothing_get_the_largest_strength():
    jobs = archive(programmes=300, sd=(0.0, 0.0, 0.5))
    fitted = fit_strength(same_answers(jobs), jobs)[:, WALLCLOCK]
    assert fitted[LEVELS.index("programme")] >= 16 and fitted[LEVELS.index("visit")] >= 16


def test_a_large_programme_does_not_decide_the_strengths():
    small = archive(programmes=200, visits=2, jobs=1, sd=(0.6, 0.0, 0.1))
    # One programme of many rows, in which jobs have nothing in common.
    large = archive(programmes=900, visits=2, jobs=1, sd=(0.0, 0.0, 0.6), seed=1)
    large = replace(
        large,
        features=np.column_stack([np.repeat(np.arange(10, 910), 2), large.features[:, 1:]]),
        names=[f"ibig{name[4:]}" for name in large.names],
    )
    fitted = [
        fit_strength(same_answers(jobs), jobs)[LEVELS.index("programme"), WALLCLOCK]
        for jobs in (small, large, both(small, large))
    ]
    assert fitted[1] >= 16 * fitted[0]
    assert fitted[2] <= 2 * fitted[0]


def test_what_cannot_be_fitted_keeps_the_default():
    # No job has kin in its row, and one network is missing.
    jobs = finished(*((f"i{letter}aa01abq", (n + 1.0, *ROW[1:]), 1.0, 100.0) for n, letter in enumerate("abcdefgh")))
    answers = same_answers(jobs)
    answers[:, 5] = np.nan
    assert np.array_equal(fit_strength(answers, jobs), DEFAULT_STRENGTH)
    assert np.array_equal(fit_strength(np.empty((0, 6)), finished()), DEFAULT_STRENGTH)


@pytest.mark.parametrize("known", [MIN_RUNS, MIN_RUNS - 1])
def test_the_last_run_counts_by_how_runs_agree_where_enough_datasets_ran_twice(known):
    jobs = archive(programmes=known, visits=1, jobs=1, sd=(0.5, 0.0, 0.0))
    runs = replace(jobs, wallclock_s=jobs.wallclock_s * 1.001, timestamp=jobs.timestamp - DAY)
    fitted = fit_strength(same_answers(jobs), jobs, runs)[LEVELS.index("run"), WALLCLOCK]
    assert (
        (fitted == min(STRENGTHS))
        if known == MIN_RUNS
        else (fitted == DEFAULT_STRENGTH[LEVELS.index("run"), WALLCLOCK])
    )


def test_a_campaign_is_a_difference_in_time():
    old = archive(programmes=300, sd=(0.1, 0.0, 0.1))
    new = archive(programmes=300, sd=(0.1, 0.0, 0.1), seed=1, at=1_000_000 + 5 * DAY)
    new = replace(new, names=["j" + name[1:] for name in new.names], wallclock_s=new.wallclock_s * 1.2)
    jobs = both(old, new)
    answers = same_answers(jobs)
    assert np.array_equal(fit_campaign(same_answers(old), old, DEFAULT_STRENGTH, 2e9), NO_SHIFT)
    shift = fit_campaign(answers, jobs, DEFAULT_STRENGTH, 2e9)
    # The answers are between the two: half the difference is left.
    assert 0.06 < shift[3, 1] < 0.1
    assert abs(shift[3, 0]) < 1e-9 and not shift[:3].any()
    # A clock in the future does not count.
    assert np.array_equal(fit_campaign(answers, jobs, DEFAULT_STRENGTH, 1_000_001), NO_SHIFT)


# -- Files ------------------------------------------------------------------------------------------------------------


@given(worlds())
def test_evidence_is_read_as_it_was_written(jobs):
    evidence = build_evidence(jobs, DEFAULT_STRENGTH, np.full((4, 2), 0.125))
    read = Evidence.read(evidence.files())
    networks = np.tile(NETWORKS, (len(jobs.names), 1))
    answers = [one.correct(networks, jobs.features, jobs.names, at=1_050_000).answers for one in (evidence, read)]
    assert np.array_equal(*answers)
    assert read.newest == evidence.newest


def test_a_bundle_without_evidence_has_none_and_one_of_no_jobs_is_read():
    assert Evidence.read({"tx_data.json": b"{}"}) is None
    empty = Evidence.read(build_evidence(finished(), DEFAULT_STRENGTH, NO_SHIFT).files())
    assert np.array_equal(asked(empty, "iaaa01abq"), NETWORKS)


def _words(content, change):
    words = np.load(io.BytesIO(content))
    file = io.BytesIO()
    np.save(file, change(words))
    return file.getvalue()


def _nan_at_the_end(words):
    words = words.copy()
    words[-1] = np.float32(np.nan).view(np.uint32)
    return words


@pytest.mark.parametrize("name", ["rows", "groups", "runs"])
@pytest.mark.parametrize(
    "damage",
    {
        "truncated": lambda content: content[:-4],
        "header only": lambda content: content[:128],
        "empty": lambda content: b"",
        "not an array": lambda content: b"x" * len(content),
        "fewer words": lambda content: _words(content, lambda words: words[:-1]),
        "another shape": lambda content: _words(content, lambda words: words.reshape(1, -1)),
        "another type": lambda content: _words(content, lambda words: words.astype("<u8")),
        "keys not ascending": lambda content: _words(content, lambda words: np.r_[words[2:4], words[:2], words[4:]]),
        "a key twice": lambda content: _words(content, lambda words: np.r_[words[:2], words[:2], words[4:]]),
        "not a number": lambda content: _words(content, _nan_at_the_end),
    }.items(),
    ids=lambda damage: damage[0],
)
def test_a_damaged_table_is_refused_by_name(name, damage):
    jobs = finished(("iaaa01abq", ROW, 1.0, 400.0), ("ibbb01abq", OTHER_ROW, 3.0, 900.0))
    files = build_evidence(jobs, DEFAULT_STRENGTH, NO_SHIFT).files()
    file = f"evidence/{name}.npy"
    with pytest.raises(InputError, match=rf"{file}.*expected [24] ascending keys") as refused:
        Evidence.read(files | {file: damage[1](files[file])})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["strength"].pop("visit"),
        lambda data: data["strength"]["row"].update(memory=0),
        lambda data: data["strength"]["row"].update(memory=float("nan")),
        lambda data: data["strength"]["row"].update(memory="much"),
        lambda data: data["campaign"].pop("WFC3"),
        lambda data: data["campaign"].update(WFC3=[0.1]),
        lambda data: data["campaign"].update(WFC3=[0.1, 99.0]),
        lambda data: data.pop("newest_job"),
        lambda data: data["lines"].update(rows=7),
        lambda data: data["lines"].update(rows=-1),
        lambda data: data["lines"].pop("groups"),
    ],
)
def test_settings_of_other_evidence_are_refused(damage):
    files = build_evidence(finished(("iaaa01abq", ROW, 1.0, 400.0)), DEFAULT_STRENGTH, NO_SHIFT).files()
    data = json.loads(files["evidence/evidence.json"])
    damage(data)
    with pytest.raises(InputError, match=r"evidence/(evidence\.json|rows\.npy)"):
        Evidence.read(files | {"evidence/evidence.json": json.dumps(data).encode()})


def test_a_missing_table_and_settings_that_are_no_json_are_refused():
    files = build_evidence(finished(("iaaa01abq", ROW, 1.0, 400.0)), DEFAULT_STRENGTH, NO_SHIFT).files()
    with pytest.raises(InputError, match=r"evidence/groups\.npy is missing"):
        Evidence.read({name: content for name, content in files.items() if "groups" not in name})
    for text in (b"", b"[1]", b"[" * 100_000, b"\xff"):
        with pytest.raises(InputError, match=r"evidence\.json does not parse"):
            Evidence.read(files | {"evidence/evidence.json": text})


def test_a_clock_in_the_future_counts_as_now():
    evidence = build_evidence(finished(("iaaa01abq", ROW, 4.0, 800.0)), strength_of(), NO_SHIFT)
    jobs = finished(("iaaa01abq", ROW, 4.0, 800.0))
    ahead = build_evidence(replace(jobs, timestamp=np.array([99_000_000_000])), strength_of(), NO_SHIFT)
    assert abs(ahead.newest - time.time()) < 60
    assert evidence.newest == jobs.timestamp[0]


def test_a_name_that_no_dataset_has_is_refused_in_a_sentence():
    evidence = build_evidence(finished(("iaaa01abq", ROW, 4.0, 800.0)), strength_of(), NO_SHIFT)
    with pytest.raises(InputError, match="the name 'iaaa01übq' is no dataset's; expected nine letters and digits"):
        asked(evidence, "iaaa01übq")
    # Of another length: known by nothing.
    assert np.array_equal(asked(evidence, "x"), asked(evidence, "o123"))
