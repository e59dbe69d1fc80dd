"""A bundle is what its manifest says, or it is refused; its answers are those of its files."""

import hashlib
import itertools
import json
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import yeojohnson

from calmlflow.errors import InputError
from calmlflow.hst.features import Features
from calmlflow.hst.ladder import LADDER, Ladder
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.answers import as_answers, fallback_policy
from calmlflow.predictor.bundle import Bundle, combine
from calmlflow.predictor.decision import Decision, widen
from calmlflow.predictor.evidence import DEFAULT_STRENGTH, Finished, build_evidence
from calmlflow.predictor.killtime import KillTime, Known
from calmlflow.predictor.manifest import write_manifest
from tests.samples.predictor_samples import (
    FIVE,
    KILL_TIME,
    NETWORKS,
    SCALING,
    add_evidence,
    write_bundle,
    write_network,
)

generator = np.random.default_rng(7)
FEATURES = np.column_stack(
    [
        generator.integers(1, 60, 200),
        np.round(generator.lognormal(3, 1.5, 200)),
        generator.integers(0, 2, (200, 6)),
        generator.integers(0, 4, 200),
    ]
)


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle")


def scaled(features):
    """By scipy, which fits and transforms on its own."""
    found = features.astype(float)
    for column in range(2):
        powered = yeojohnson(found[:, column], SCALING.lambdas[column])
        found[:, column] = (powered - SCALING.mu[column]) / SCALING.sigma[column]
    return found.astype(np.float32)


def test_predictions_are_those_of_the_three_files(folder):
    found = Bundle.load(folder).predict(FEATURES)
    direct = {}
    for network in NETWORKS:
        session = onnxruntime.InferenceSession(folder / network / f"{network}.onnx")
        direct[network] = session.run(None, {"features": scaled(FEATURES)})[0]
    np.testing.assert_allclose(found["probabilities"], direct["mem_clf"], rtol=1e-4)
    np.testing.assert_array_equal(found["bin_pred"], direct["mem_clf"].argmax(axis=1))
    assert len(set(found["bin_pred"])) == 4
    np.testing.assert_allclose(found["mem_pred"], direct["mem_reg"][:, 0], rtol=1e-4)
    np.testing.assert_allclose(found["wall_pred"], direct["wall_reg"][:, 0], rtol=1e-4)
    wall = found["wall_pred"]
    (edge,), (low, high) = KILL_TIME.edges_s, KILL_TIME.factors
    assert wall.min() < edge < wall.max()
    expected = np.clip(np.ceil(wall * np.where(wall <= edge, low, high)), 60, 172_800)
    np.testing.assert_array_equal(found["kill_time"], expected)


@pytest.mark.parametrize("networks", [NETWORKS, ("mem_clf",)])
def test_a_job_whose_input_fills_the_largest_rung_gets_that_rung(folder, networks):
    features = np.array([[2400, 61_000, 0, 0, 0, 0, 0, 0, letter] for letter in range(4)], dtype=float)
    found = Bundle.load(folder, networks).predict(features)
    assert found["bin_pred"].tolist() == [3] * 4
    if "mem_reg" in networks:
        assert found["mem_pred"].min() >= 61


def add_rows(folder, rows, spread=None, ratio_lines=None):
    """Give a bundle the rows it was trained on, and tables with so many lines."""
    if rows is not None:
        (folder / "seen_rows.json").write_text(json.dumps(np.asarray(rows).tolist()))
    if spread is not None:
        (folder / "killtime.json").write_text(replace(KILL_TIME, spread=tuple(spread)).to_json())
    if ratio_lines is not None:
        (folder / "decision.json").write_text(Decision(np.ones((ratio_lines, 4))).to_json())
    write_manifest(folder)


@pytest.mark.parametrize(
    ("rows", "spread", "ratio_lines", "file"),
    [(2, [1.0] * 2, None, "killtime.json"), (2, [1.0] * 4, None, "killtime.json"), (None, None, 2, "decision.json")],
)
def test_tables_of_another_training_are_refused(folder, rows, spread, ratio_lines, file):
    add_rows(folder, None if rows is None else FEATURES[:rows], spread, ratio_lines)
    words = rf"^bundle {re.escape(str(folder))}: {file} and seen_rows\.json do not belong together; expected[^.]*$"
    with pytest.raises(InputError, match=words):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("rows", "spread", "ratio_lines"), [(2, [1.0] * 3, 3), (None, [1.0], 1), (2, None, None), (None, None, None)]
)
def test_tables_that_belong_together_are_read(folder, rows, spread, ratio_lines):
    add_rows(folder, None if rows is None else FEATURES[:rows], spread, ratio_lines)
    assert ("unseen" in Bundle.load(folder).predict(FEATURES)) == (rows is not None)


PROBABILITIES = np.array([[0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 0.1, 0.9], [0.55, 0.44, 0.01, 0.0]])


def outputs_of(bins=None, gb=None, seconds=None, nearest=()):
    """Outputs of some networks for n jobs, with their nearest rows by network."""
    n = len(next(each for each in (bins, gb, seconds) if each is not None))
    nothing = np.full(n, np.nan)
    rows = [dict(nearest).get(network, nothing) for network in NETWORKS]
    bins = np.full((n, 4), np.nan) if bins is None else bins
    return np.column_stack([bins, nothing if gb is None else gb, nothing if seconds is None else seconds, *rows])


def test_predictions_are_combined_of_the_networks_outputs():
    # One line per row, and one for jobs unlike any seen. In row 1 the jobs that need more than rung 0 run for ages.
    decision = Decision(np.array([[1.0, 1, 1, 1], [1, 1e3, 1e3, 1e3], [1, 1, 1, 1]]))
    kill_time = KillTime((), (4.0,), 0.9, (1,), (0.5, 1.0, 1.0))
    bare = combine(outputs_of(PROBABILITIES, [1.5, 30, 2], [100.0] * 3))
    assert set(bare) == {"bin_pred", "probabilities", "mem_pred", "wall_pred"}
    assert bare["bin_pred"].tolist() == [0, 3, 0]
    assert bare["mem_pred"].tolist() == [1.5, 30, 2]
    assert bare["wall_pred"].tolist() == [100, 100, 100]
    np.testing.assert_array_equal(bare["probabilities"], PROBABILITIES)

    nearest = np.array([0, -1, 1])
    outputs = outputs_of(PROBABILITIES, [1.5, 30, 2], [100.0] * 3, dict.fromkeys(NETWORKS, nearest))
    found = combine(outputs, decision, kill_time)
    assert found["unseen"].tolist() == [False, True, False]
    assert found["bin_pred"][1:].tolist() == [3, 1]
    np.testing.assert_array_equal(found["bin_pred"][[0, 2]], decision.choose(PROBABILITIES, nearest)[[0, 2]])
    assert found["kill_time"].tolist() == [200, 172_800, 400]

    # Where rows are not known, the lines for jobs unlike any seen serve all, and nobody is told to be one.
    found = combine(outputs_of(PROBABILITIES, [1.5, 30, 2], [100.0] * 3), decision, kill_time)
    assert "unseen" not in found
    np.testing.assert_array_equal(found["bin_pred"], decision.choose(PROBABILITIES, np.full(3, -1)))
    assert found["kill_time"].tolist() == [400, 400, 400]


@pytest.mark.parametrize("knowing", [{}, {"mem_clf"}, {"mem_reg", "wall_reg"}, {*NETWORKS}])
@pytest.mark.parametrize("rows_of", [("mem_clf",), ("mem_reg",), ("wall_reg",), NETWORKS])
def test_what_is_unseen_to_one_network_changes_what_that_network_says(rows_of, knowing):
    nearest = {network: np.array([0 if network in knowing else -1]) for network in rows_of}
    unsure = set(rows_of) - set(knowing)
    found = combine(outputs_of(PROBABILITIES[:1], [2.0], [100.0], nearest), kill_time=KillTime((), (4.0,), 0.9, (1,)))
    wide = "mem_clf" in unsure
    np.testing.assert_array_equal(found["probabilities"], widen(PROBABILITIES[:1]) if wide else PROBABILITIES[:1])
    assert found["kill_time"].tolist() == [172_800 if "wall_reg" in unsure else 400]
    assert found["unseen"].tolist() == [bool(unsure)]
    assert (found["mem_pred"].tolist(), found["wall_pred"].tolist()) == ([2], [100])


# -- Evidence ---------------------------------------------------------------------------------------------------------

NAMES = np.array([f"j8c6{number // 36 % 36:02d}{number % 36:02d}q" for number in range(len(FEATURES))])
FINISHED = Finished(
    FEATURES, NAMES, generator.uniform(0.5, 60, 200), generator.uniform(30, 9000, 200), np.arange(200) + 1_600_000_000
)


def test_evidence_corrects_what_the_networks_say(folder):
    alone = Bundle.load(folder).predict(FEATURES, NAMES)
    evidence = add_evidence(folder, FINISHED)
    assert json.loads((folder / "bundle.json").read_text())["format"] == 3
    bundle = Bundle.load(folder)
    networks = np.column_stack([alone["probabilities"], np.log(alone["mem_pred"]), np.log(alone["wall_pred"])])
    for finished, more in (
        (None, {}),
        (FINISHED, {"observed": FINISHED.observed(), "at": FINISHED.timestamp}),
    ):
        corrected = evidence.correct(networks, FEATURES, NAMES, **more)
        found = bundle.predict(FEATURES, NAMES, finished)
        np.testing.assert_allclose(found["probabilities"], corrected.answers[:, :4])
        np.testing.assert_allclose(np.log(found["mem_pred"]), corrected.answers[:, 4])
        np.testing.assert_allclose(np.log(found["wall_pred"]), corrected.answers[:, 5])
        np.testing.assert_array_equal(found["evidence"], corrected.jobs)
    assert np.abs(np.log(bundle.predict(FEATURES, NAMES)["mem_pred"]) - networks[:, 4]).max() > 0.5


def test_fields_of_a_later_program_version_are_ignored(folder):
    add_rows(folder, FEATURES, ratio_lines=len(FEATURES) + 1)
    add_evidence(folder, FINISHED)
    now = Bundle.load(folder).predict(FEATURES, NAMES)
    (folder / "later.json").write_text("[]")
    known = [path for path in folder.rglob("*.json") if isinstance(json.loads(path.read_text()), dict)]
    assert {"bundle.json", "tx_data.json", "killtime.json", "decision.json"} < {path.name for path in known}
    for path in sorted(known, key=lambda path: path.name == "bundle.json"):
        write_manifest(folder)
        path.write_text(json.dumps({**json.loads(path.read_text()), "later": {"a": 1}}))
    for name, values in Bundle.load(folder).predict(FEATURES, NAMES).items():
        np.testing.assert_array_equal(values, now[name])


def test_a_last_run_that_nobody_expected_leaves_probabilities_that_add_up_to_1():
    nobody = Finished(*(column[:0] for column in vars(FINISHED).values()))
    evidence = build_evidence(nobody, DEFAULT_STRENGTH, np.zeros((4, 2)), FINISHED)
    answers = np.tile([1.0, 0, 0, 0, 0, 5], (len(FEATURES), 1))
    corrected = evidence.correct(answers, FEATURES, NAMES).answers[:, :4]
    # Of a bin that was certain a third is left: a run counts as one job, the answer so far as half a job.
    moved = FINISHED.memory_gb >= LADDER[0].limit_gb
    np.testing.assert_allclose(corrected[moved, 0], 1 / 3)
    np.testing.assert_allclose(corrected.sum(axis=1), 1)


def test_a_dataset_that_ran_before_gets_the_kill_time_of_a_new_programme(folder):
    known = Known(1, (), (1.5,), (2000,))
    (folder / "killtime.json").write_text(replace(KILL_TIME, known=(known,)).to_json())
    # All of one programme and row, so that each knows the others.
    jobs = replace(FINISHED, features=np.tile(FEATURES[:1], (200, 1)))
    add_evidence(folder, jobs)
    bundle = Bundle.load(folder)
    (edge,), factors = KILL_TIME.edges_s, KILL_TIME.factors
    for finished, factor in ((jobs, (1.5, 1.5)), (None, factors)):
        found = bundle.predict(jobs.features, NAMES, finished)
        assert found["evidence"][:, 1].min() > 0
        wall = found["wall_pred"]
        expected = np.clip(np.ceil(wall * np.where(wall <= edge, *factor)), 60, 172_800)
        np.testing.assert_array_equal(found["kill_time"], expected)


@pytest.fixture(scope="module", params=[True, False], ids=["evidence", "networks alone"])
def sound_and_decided(request, tmp_path_factory):
    """A bundle with decision and rows, with evidence or without, and what its networks say of `FEATURES`."""
    folder = write_bundle(tmp_path_factory.mktemp("sound") / "bundle")
    add_rows(folder, FEATURES[:100], ratio_lines=101)
    if request.param:
        add_evidence(folder, FINISHED)
    bundle = Bundle.load(folder)
    return bundle, bundle.run(FEATURES)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.floats(width=32)), max_size=8))
def test_whatever_networks_say_the_answer_is_valid(sound_and_decided, said):
    bundle, sound = sound_and_decided
    outputs = sound[:5].copy()
    for job, column, value in said:
        outputs[job, column] = value
    with warnings.catch_warnings(action="error"):
        found = bundle.answer(outputs, bundle.correct(outputs, FEATURES[:5], NAMES[:5]))
    for answer in as_answers(found):
        assert answer["memBin"] in range(4)
        assert 0 <= answer["memVal"] <= 1e6
        assert 1 <= answer["clockTime"] <= 1e9
        assert 60 <= answer["killTime"] <= 172_800
        assert min(answer["probabilities"]) >= 0
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=2e-3)
    # Only the jobs whose outputs were changed.
    touched = sorted({job for job, _, _ in said})
    by_policy = found["by_policy"].any(axis=1).nonzero()[0] if "by_policy" in found else []
    assert set(by_policy) <= set(touched)
    assert {job for job, column, value in said if column > 3 and outputs[job, column] == value <= 0} <= set(by_policy)


@pytest.mark.parametrize("said", [0.0, -39.0, np.nan, np.inf, 1e30])
def test_a_network_that_says_what_cannot_be_true_is_named_and_the_policy_answers(folder, said):
    add_evidence(folder, FINISHED)
    bundle = Bundle.load(folder)
    outputs = bundle.run(FEATURES)
    outputs[0, 5] = said
    # The programme is another one: nothing of it times infinity is no number.
    with warnings.catch_warnings(action="error"):
        corrected = bundle.correct(outputs, FEATURES, ["j00000000", *NAMES[1:]])
    first, second, *_ = as_answers(bundle.answer(outputs, corrected))
    (warning,) = first.pop("warnings")
    assert "by policy, for wall_reg gave what cannot be true" in warning
    assert first == {key: value for key, value in fallback_policy().items() if key in first}
    assert not any("policy" in text for text in second["warnings"])


def test_evidence_of_no_jobs_changes_no_digit(folder):
    alone = Bundle.load(folder).predict(FEATURES)
    add_evidence(folder, Finished(*(column[:0] for column in vars(FINISHED).values())))
    found = Bundle.load(folder).predict(FEATURES, NAMES)
    assert found.pop("evidence").sum() == 0
    assert set(found) == set(alone)
    for name, column in alone.items():
        np.testing.assert_array_equal(found[name], column)


def test_a_job_of_a_row_that_evidence_knows_is_not_unseen(folder):
    add_rows(folder, FEATURES[:1])
    unseen = Bundle.load(folder).predict(FEATURES, NAMES)["unseen"]
    assert unseen.any()
    add_evidence(folder, FINISHED)
    assert not Bundle.load(folder).predict(FEATURES, NAMES)["unseen"].any()


def test_networks_run_once_for_each_row_that_there_is_room_for(folder, monkeypatch):
    bundle = Bundle.load(folder)
    asked = []
    monkeypatch.setattr(
        Bundle, "run", lambda self, rows: [asked.append(row) or np.full(9, row.n_files) for row in rows]
    )
    rows = [Features(number % 7 + 1, 2, 0, 0, 0, 0, 0, 0, 0) for number in range(20)]
    for _ in range(2):
        assert bundle.run_known(rows)[:, 0].tolist() == [row.n_files for row in rows]
    assert len(asked) == 7
    monkeypatch.setattr("calmlflow.predictor.bundle.MAX_KNOWN", 8)
    more = [Features(number, 2, 0, 0, 0, 0, 0, 0, 0) for number in (1, 20, 21, 22)]
    for _ in range(2):
        assert bundle.run_known(more)[:, 0].tolist() == [1, 20, 21, 22]
    assert len(asked) == 13


COLUMNS = {
    "mem_clf": ("bin_pred", "probabilities"),
    "mem_reg": ("mem_pred",),
    "wall_reg": ("wall_pred", "kill_time"),
}


@pytest.mark.parametrize(
    ("network", "keys"),
    [
        ("mem_clf", ("memBin", "probabilities", "unseen")),
        ("mem_reg", ("memVal",)),
        ("wall_reg", ("clockTime", "killTime")),
    ],
)
def test_one_network_answers_its_own_keys(folder, network, keys):
    bundle = Bundle.load(folder, [network])
    found = bundle.predict(FEATURES[:2])
    assert set(found) == set(COLUMNS[network])
    keys = (*keys, "evidence", "warnings")
    assert bundle.answer_keys == keys
    assert [set(answer) for answer in as_answers(found)] == [set(keys)] * 2


def change_manifest(folder, change):
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def link_outside(folder):
    (folder / "tx_data.json").rename(folder.parent / "tx_data.json")
    (folder / "tx_data.json").symlink_to(folder.parent / "tx_data.json")


def list_outside(folder, name):
    content = b"of somebody else"
    (folder.parent / "secret").write_bytes(content)
    change_manifest(folder, lambda manifest: manifest["sha256"].update({name: hashlib.sha256(content).hexdigest()}))


def test_a_bundle_decides_prices_and_names_by_its_own_ladder(tmp_path):
    folder = write_bundle(tmp_path / "bundle", ladder=FIVE)
    (folder / "decision.json").write_text(Decision(np.ones((1, 5)), ladder=FIVE).to_json())
    write_manifest(folder)
    assert json.loads((folder / "bundle.json").read_text())["format"] == 4
    bundle = Bundle.load(folder)
    assert bundle.ladder == FIVE
    answers = as_answers(bundle.predict(FEATURES), bundle.ladder)
    assert {len(answer["probabilities"]) for answer in answers} == {5}
    assert {answer["memBin"] for answer in answers} <= set(range(5))
    assert any("needs rung 4g" in sentence for answer in answers for sentence in answer["warnings"]) == any(
        1.792 <= answer["memVal"] < 3.584 and answer["memBin"] != 1 for answer in answers
    )
    # The top rung for next to nothing: every job goes there.
    cheap = Ladder("cheap", (*FIVE.rungs[:-1], replace(FIVE[4], usd_per_hour=1e-6)))
    (folder / "ladder.json").write_text(cheap.to_json())
    write_manifest(folder)
    assert set(Bundle.load(folder).predict(FEATURES)["bin_pred"]) == {4}
    (folder / "ladder.json").write_text(LADDER.to_json())
    write_manifest(folder)
    with pytest.raises(InputError, match=r"mem_clf\.onnx takes and gives .*; expected .*4"):
        Bundle.load(folder)


def replace_network(folder, network, outputs):
    path = folder / network / f"{network}.onnx"
    write_network(path, outputs, 1) if outputs else path.write_bytes(b"a picture of a network")
    write_manifest(folder)


ONNX = [f"{network}/{network}.onnx" for network in NETWORKS]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((lambda folder, name=name: (folder / name).unlink(), f"{name} cannot be read") for name in
          ("mem_reg/mem_reg.onnx", "tx_data.json", "killtime.json", "bundle.json")),
        *((lambda folder, name=name: (folder / name).write_bytes(b"x"), f"{name} does not match its SHA-256")
          for name in ONNX),
        *((lambda folder, name=name: change_manifest(folder, lambda manifest: manifest["sha256"].pop(name)),
           f"{name} is not listed") for name in ("wall_reg/wall_reg.onnx", "killtime.json", "tx_data.json")),
        (link_outside, "lies outside the bundle"),
        (lambda folder: list_outside(folder, "../secret"), "lies outside the bundle"),
        (lambda folder: list_outside(folder, str(folder.parent / "secret")), "lies outside the bundle"),
        (lambda folder: replace_network(folder, "mem_clf", 1), r"mem_clf\.onnx takes and gives"),
        (lambda folder: replace_network(folder, "mem_reg", 4), r"mem_reg\.onnx takes and gives"),
        (lambda folder: replace_network(folder, "wall_reg", 0), r"wall_reg\.onnx is no ONNX network"),
    ],
)  # fmt: skip
def test_a_bundle_that_is_not_what_it_should_be_is_refused(folder, damage, words):
    damage(folder)
    with pytest.raises(InputError, match=words):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        *({"format": value} for value in (5, [1], "1", None)),
        *({"networks": value} for value in (["mem_clf", "other"], 3, [[]], None)),
        *({"sha256": value} for value in (["tx_data.json"], {"tx_data.json": 5}, None)),
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_damaged_manifest_is_refused(folder, change):
    if isinstance(change, dict):
        change_manifest(folder, lambda manifest: manifest.update(change))
    else:
        (folder / "bundle.json").write_bytes(change)
    with pytest.raises(InputError, match=r"bundle\.json is damaged; expected format 1 or 2 or 3 or 4, "):
        Bundle.load(folder)


def test_the_manifest_lists_every_file_and_the_networks_that_are_there(folder):
    (folder / "mem_reg" / "mem_reg.onnx").unlink()
    (folder / "mem_reg" / "mem_reg.keras").write_bytes(b"x")
    write_manifest(folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["networks"] == ["mem_clf", "wall_reg"]
    assert set(manifest["sha256"]) == {
        "killtime.json", "ladder.json", "tx_data.json",
        "mem_clf/mem_clf.onnx", "mem_reg/mem_reg.keras", "wall_reg/wall_reg.onnx",
    }  # fmt: skip
    assert set(Bundle.load(folder).predict(FEATURES)) >= {"bin_pred", "wall_pred"}


# -- Networks of different trainings ----------------------------------------------------------------------------------

OTHER_SCALING = Scaling((0.3, -0.2), (2.0, 1.0), (0.8, 1.1))


@pytest.fixture
def trainings(tmp_path):
    """Two bundles that differ in everything: networks, scaling, seen rows, decision and kill times."""
    folders = []
    for seed, (scaling, rows) in enumerate([(SCALING, FEATURES[:60]), (OTHER_SCALING, FEATURES[40:140])]):
        folder = write_bundle(tmp_path / f"training-{seed}", seed)
        (folder / "tx_data.json").write_text(scaling.to_json())
        ratios = np.random.default_rng(seed).uniform(0.5, 2, (len(rows) + 1, 4))
        (folder / "decision.json").write_text(Decision(ratios).to_json())
        add_rows(folder, rows, spread=np.linspace(0.5, 1.5, len(rows) + 1))
        folders.append(folder)
    return folders


def mix(target, sources):
    """A bundle of networks from these folders, each with tables of its own."""
    for network, source in sources.items():
        shutil.copytree(source / network, target / network)
        for table in ("tx_data.json", "seen_rows.json"):
            if (source / table).exists():
                shutil.copy(source / table, target / network)
    shutil.copy(sources["mem_clf"] / "decision.json", target)
    shutil.copy(sources["wall_reg"] / "killtime.json", target)
    write_manifest(target)
    return target


@pytest.mark.parametrize("choice", list(itertools.product((0, 1), repeat=3)))
def test_each_network_answers_as_in_the_bundle_it_comes_from(trainings, tmp_path, choice):
    sources = {network: trainings[number] for network, number in zip(NETWORKS, choice, strict=True)}
    mixed = Bundle.load(mix(tmp_path / "mixed", sources)).predict(FEATURES)
    origins = [Bundle.load(folder).predict(FEATURES) for folder in trainings]
    for network, number in zip(NETWORKS, choice, strict=True):
        for column in COLUMNS[network]:
            np.testing.assert_array_equal(mixed[column], origins[number][column], strict=True)
            assert not np.array_equal(origins[0][column], origins[1][column])
    unseen = np.any([origins[number]["unseen"] for number in choice], axis=0)
    assert 0 < origins[0]["unseen"].sum() < len(FEATURES)
    np.testing.assert_array_equal(mixed["unseen"], unseen)


def test_a_table_of_its_own_changes_the_format(trainings):
    whole, other = trainings
    assert json.loads((whole / "bundle.json").read_text())["format"] == 1
    shutil.copy(other / "seen_rows.json", whole / "mem_reg")
    write_manifest(whole)
    assert json.loads((whole / "bundle.json").read_text())["format"] == 2


@pytest.mark.parametrize(("network", "table"), [("mem_clf", "decision.json"), ("wall_reg", "killtime.json")])
def test_lines_are_held_against_the_rows_of_their_own_network(trainings, tmp_path, network, table):
    whole, other = trainings
    sources = {**dict.fromkeys(NETWORKS, whole), network: other}
    folder = mix(tmp_path / "mixed", sources)
    Bundle.load(folder)
    shutil.copy(whole / table, folder)
    write_manifest(folder)
    words = f"bundle {folder}: {table} and {network}/seen_rows.json do not belong together"
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        Bundle.load(folder)


@pytest.mark.parametrize("table", ["tx_data.json", "seen_rows.json"])
def test_a_table_that_does_not_parse_is_named_with_its_network_and_bundle(trainings, tmp_path, table):
    whole, other = trainings
    folder = mix(tmp_path / "mixed", {"mem_clf": whole, "mem_reg": other, "wall_reg": whole})
    (folder / "mem_reg" / table).write_text("{}")
    write_manifest(folder)
    with pytest.raises(InputError, match=rf"^bundle {re.escape(str(folder))}: mem_reg/{table} cannot be used \("):
        Bundle.load(folder)
