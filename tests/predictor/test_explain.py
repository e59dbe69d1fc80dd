"""An explanation is that of the answer: its numbers give the answer again, and the answer stays what it is."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from calmlflow.hst.features import job_features
from calmlflow.hst.ladder import LADDER, allocation_cost
from calmlflow.predictor import Bundle, Predictor
from calmlflow.predictor.answers import as_answers, fallback_policy, mosaic_policy
from calmlflow.predictor.decision import Decision
from calmlflow.predictor.evidence import DEFAULT_STRENGTH, KINDS, LEVELS, Finished
from calmlflow.predictor.explain import WIDTH, as_text, explain
from calmlflow.predictor.killtime import KillTime
from calmlflow.predictor.manifest import write_manifest
from tests.samples.predictor_samples import CONTROL, SCALING, add_evidence, write_bundle

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
JOB = "jabc03020"
ROW = job_features(JOB, CONTROL)
# Features, dataset, GB, s and time. The first job ran twice.
JOBS = [
    (ROW, JOB, 1.0, 290.0, 1),
    (ROW, JOB, 1.25, 310.0, 2),
    (ROW, "jabc03010", 1.5, 400.0, 3),
    (ROW, "jabd01020", 3.0, 2000.0, 4),
    (ROW._replace(n_files=34), "jxxx01010", 2.0, 500.0, 5),
    (ROW._replace(total_mb=11), "jxxx01020", 9.0, 600.0, 6),
    (ROW._replace(pctecorr=1), "jyyy01010", 4.0, 700.0, 7),
    (ROW._replace(pctecorr=1, subarray=1), "jyyy01020", 5.0, 800.0, 8),
    (ROW._replace(n_files=10**4, total_mb=10**5), "jzzz01010", 30.0, 20_000.0, 9),
]
NEW_PROGRAMME = "jqqq01020"
UNSEEN = ("oabc06090", job_features("oabc06090", {**CONTROL, "SUBARRAY": "True", "CRSPLIT": "4"}))
SPREAD = (0.5, 1.5, 1.0)
RATIO = np.array([[0.9, 1.2, 1.5, 2.0], [1, 1, 1, 1], [1, 1.1, 1.1, 1.1]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A bundle without evidence."""
    folder = write_bundle(tmp_path_factory.mktemp("plain"))
    (folder / "seen_rows.json").write_text(json.dumps([ROW, ROW._replace(n_files=34)]))
    (folder / "decision.json").write_text(Decision(RATIO).to_json())
    (folder / "killtime.json").write_text(KillTime((400.0,), (3.5, 2.25), 0.99, (120, 80), SPREAD).to_json())
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def networks(plain):
    """Read before there is evidence."""
    return Bundle.load(plain)


@pytest.fixture(scope="module")
def bundle(plain, networks):
    features, names, memory_gb, wallclock_s, timestamp = map(np.array, zip(*JOBS, strict=True))
    jobs = Finished(features * 1.0, names, memory_gb, wallclock_s, timestamp)
    # A campaign in which jobs take 10 % longer.
    add_evidence(plain, jobs, (0.0, math.log(1.1)))
    return Bundle.load(plain)


def with_decision(bundle, decision):
    other = copy.copy(bundle)
    other.decision = decision
    return other


def answered(bundle, name=JOB, features=ROW):
    return {**as_answers(bundle.predict([features], [name]))[0], "version": "7", "source": "registry"}


def explained(bundle, name=JOB, features=ROW):
    """An explanation, which is JSON, of the answer as it was."""
    answer = answered(bundle, name, features)
    found = explain(answer, name, features, bundle)
    assert found["answer"] == answer
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


@pytest.mark.parametrize("job", [(JOB, ROW), (NEW_PROGRAMME, ROW), ("jabc03020", JOBS[4][0]), UNSEEN])
def test_the_levels_lead_from_the_networks_to_the_answer(bundle, networks, job):
    found = explained(bundle, *job)
    answer, levels = found["answer"], found["levels"]
    start = networks.predict([job[1]])
    assert levels[0]["level"] == "networks"
    assert levels[0]["memory_gb"] == start["mem_pred"][0]
    assert levels[0]["wallclock_s"] == start["wall_pred"][0]
    evidence = levels[1 : 1 + len(LEVELS)]
    assert [level["level"] for level in evidence] == list(LEVELS)
    for kind, key in (("memory", "memory_gb"), ("wallclock", "wallclock_s")):
        product = levels[0][key] * math.prod(level["factor"][kind] for level in evidence)
        assert levels[-1][key] == pytest.approx(product)
    assert round(levels[-1]["memory_gb"], 2) == answer["memVal"]
    assert int(levels[-1]["wallclock_s"]) == answer["clockTime"]
    assert levels[-1]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)
    assert {level["level"]: level["jobs"] for level in evidence} == {**answer["evidence"], "campaign": None}
    assert [list(level["strength"].values()) for level in evidence] == DEFAULT_STRENGTH.tolist()
    assert all(tuple(level["strength"]) == KINDS for level in evidence)


def test_a_level_without_jobs_changes_nothing(bundle):
    known, new = (explained(bundle, name)["levels"] for name in (JOB, NEW_PROGRAMME))
    assert [level["jobs"] for level in known] == [None, 4, None, 3, 3, 1]
    assert [level["jobs"] for level in new] == [None, 4, None, 0, 0, 0]
    assert new[:3] == known[:3]
    assert new[2]["factor"] == pytest.approx({"memory": 1, "wallclock": 1.1})
    for level in new[3:]:
        assert level["factor"] == {"memory": 1, "wallclock": 1}
        assert level["probabilities"] == new[2]["probabilities"]


@pytest.mark.parametrize("job", [(JOB, ROW), (NEW_PROGRAMME, ROW), ("jabc03020", JOBS[4][0]), UNSEEN])
def test_the_rung_is_that_of_the_lowest_expected_cost(bundle, job):
    found = explained(bundle, *job)
    rungs, wallclock_s = found["rungs"], found["levels"][-1]["wallclock_s"]
    assert [rung["rung"] for rung in rungs] == [rung.name for rung in LADDER]
    for number, rung in enumerate(rungs):
        expected = sum(
            other["probability"] * float(allocation_cost(number, needed, wallclock_s * other["wallclock_ratio"]))
            for needed, other in enumerate(rungs)
        )
        assert rung["expected_usd"] == pytest.approx(expected)
        assert rung["chosen"] == (number == found["answer"]["memBin"])
    (chosen,) = (rung for rung in rungs if rung["chosen"])
    assert chosen["expected_usd"] == min(rung["expected_usd"] for rung in rungs)
    row = {ROW: 0, JOBS[4][0]: 1}.get(job[1], -1)
    assert [rung["wallclock_ratio"] for rung in rungs] == RATIO[row].tolist()


@pytest.mark.parametrize("job", [(JOB, ROW), ("jabc03020", JOBS[4][0])])
def test_the_kill_time_is_made_of_what_is_said(bundle, job):
    found = explained(bundle, *job)
    kill = found["kill_time"]
    assert kill["predicted_s"] == pytest.approx(found["levels"][-1]["wallclock_s"])
    assert kill["spread"] == SPREAD[[ROW, JOBS[4][0]].index(job[1])]
    assert (kill["factor"], kill["jobs"]) == ((3.5, 120) if kill["predicted_s"] <= 400 else (2.25, 80))
    assert (kill["coverage"], kill["shortest_s"], kill["longest_s"]) == (0.99, 60, 172_800)
    bound_s = math.ceil(kill["predicted_s"] * kill["factor"] ** kill["spread"])
    assert found["answer"]["killTime"] == min(max(bound_s, 60), 172_800)


def test_the_nearest_rows_differ_in_few_flags_and_then_in_size(bundle):
    own, *others = explained(bundle)["nearest"]
    assert (own["differs"], own["jobs"]) == ({}, 4)
    # A single job in a row is what is typical of it. Twice the files are further than a tenth more megabytes.
    assert [(row["differs"], row["jobs"]) for row in others] == [
        ({"total_mb": 11}, 1),
        ({"n_files": 34}, 1),
        ({"n_files": 10**4, "total_mb": 10**5}, 1),
        ({"pctecorr": 1}, 1),
    ]
    for row, (_, _, memory_gb, wallclock_s, _) in zip(others, [JOBS[5], JOBS[4], JOBS[8], JOBS[6]], strict=True):
        assert (row["memory_gb"], row["wallclock_s"]) == pytest.approx((memory_gb, wallclock_s))
        needed = [memory_gb < limit for limit in (1.792, 7.168, 14.336, math.inf)].index(True)
        assert row["needed_bins"] == [float(number == needed) for number in range(4)]


def test_the_last_run_is_the_newest_of_this_dataset_and_row(bundle):
    assert explained(bundle)["last_run"] == {"memory_gb": 1.25, "wallclock_s": 310}
    assert explained(bundle, NEW_PROGRAMME)["last_run"] is None
    assert explained(bundle, JOB, JOBS[4][0])["last_run"] is None


def test_a_job_unlike_any_seen_has_wider_probabilities_and_the_longest_kill_time(bundle):
    found = explained(bundle, *UNSEEN)
    assert found["answer"]["unseen"] is True
    before, after = found["levels"][-2:]
    assert (after["level"], after["jobs"], after["factor"]) == ("unseen", None, None)
    assert max(after["probabilities"]) < max(before["probabilities"])
    assert {found["kill_time"][key] for key in ("factor", "spread", "jobs", "coverage")} == {None}
    text = as_text(found)
    assert "172,800 s is the longest, because no training job is like this one." in text
    assert f"Warning: {found['answer']['warnings'][0][:40]}" in text


@pytest.mark.parametrize(("of_wall_reg", "of_others"), [(UNSEEN[1], ROW), (ROW, UNSEEN[1])])
def test_what_is_unseen_to_one_network_alone_is_told_apart(tmp_path, of_wall_reg, of_others):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "seen_rows.json").write_text(json.dumps([of_others]))
    (folder / "wall_reg" / "tx_data.json").write_text(SCALING.to_json())
    (folder / "wall_reg" / "seen_rows.json").write_text(json.dumps([of_wall_reg]))
    write_manifest(folder)
    found = explained(Bundle.load(folder))
    assert found["answer"]["unseen"] is True
    assert (found["levels"][-1]["level"] == "unseen") == (of_others != ROW)
    assert (found["kill_time"]["factor"] is None) == (of_wall_reg != ROW) == (found["answer"]["killTime"] == 172_800)


# -- Answers with less behind them ------------------------------------------------------------------------------------


def test_a_bundle_without_evidence_or_costs_is_explained(networks):
    found = explained(networks)
    assert ([level["level"] for level in found["levels"]], found["nearest"], found["last_run"]) == (
        ["networks"],
        [],
        None,
    )
    assert found["notes"] == ["The bundle has no evidence: the answer is that of the networks."]
    bare = explained(with_decision(networks, None))
    assert {rung["expected_usd"] for rung in bare["rungs"]} == {None}
    assert "has no decision.json" in as_text(bare)
    assert "lowest expected cost" not in as_text(bare)


def test_tables_of_zero_jobs_are_explained(tmp_path):
    nothing = np.zeros(0)
    jobs = Finished(np.zeros((0, 9)), np.zeros(0, dtype="U9"), nothing, nothing, nothing.astype(np.int64))
    found = explained(Bundle.load(write_bundle(tmp_path / "bundle", evidence=jobs)))
    assert (found["nearest"], found["last_run"]) == ([], None)
    assert "No finished job is known." in as_text(found)


def test_a_bundle_that_avoids_risk_says_so(networks):
    careful = as_text(explained(with_decision(networks, Decision(RATIO, 0.5))))
    assert "Each dollar of a killed run counts as 1.5 dollars" in careful


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(mosaic_policy(), "No network covers mosaics"), (fallback_policy(), "No version of the bundle could be had")],
)
def test_an_answer_by_policy_is_explained_in_a_sentence(bundle, answer, sentence):
    found = explain(answer, "acs_8ph_01")
    assert found.keys() == explained(bundle).keys()
    assert (found["answer"], found["levels"], found["rungs"], found["kill_time"]) == (answer, [], [], None)
    assert found["notes"] == [f"{sentence}: the answer is the fixed one of the policy."]
    assert sentence in as_text(found)


# -- What is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [(JOB, ROW), (NEW_PROGRAMME, ROW), (JOBS[8][1], JOBS[8][0]), UNSEEN])
def test_the_text_says_the_numbers_in_a_hundred_columns(bundle, job):
    found = explained(bundle, *job)
    text = as_text(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    said = text.replace(",", "").split()
    for level in found["levels"]:
        assert {level["level"], f"{level['memory_gb']:.3f}", f"{level['wallclock_s']:.0f}"} <= set(said)
        assert {f"{share:.3f}" for share in level["probabilities"]} <= set(said)
    assert "never" in said  # memory by row
    assert "1e+06" not in said
    for rung in found["rungs"]:
        assert f"{rung['expected_usd']:.6f}" in said
    (line,) = (line for line in text.splitlines() if line.endswith("chosen"))
    assert line.startswith(LADDER[found["answer"]["memBin"]].name)
    assert str(found["answer"]["killTime"]) in said
    # A name that looks like markup is shown as it is.
    assert as_text({**found, "dataset": "[red]a[/red]"}).startswith("[red]a[/red]: rung")


def test_the_longest_numbers_stay_whole(bundle):
    found = explained(bundle)
    for level in found["levels"][1:]:
        level |= {"jobs": 999_999, "strength": dict.fromkeys(KINDS, 1 / 16), "memory_gb": 57.3, "wallclock_s": 172_800}
    lines = as_text(found).splitlines()
    for level in found["levels"][1:]:
        (line,) = (line for line in lines if line.split()[:1] == [level["level"]])
        assert {"999,999", "0.062", "57.300", "172,800"} <= set(line.split())
        assert line.endswith(f"x {level['factor']['wallclock']:.3f}")


def paths(value, prefix=""):
    """Places in a JSON value: a.b, and a[].b within lists."""
    found = set()
    for key, inner in value.items():
        found.add(place := f"{prefix}{key}")
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            found |= set().union(*(paths(each, f"{place}[].") for each in inner))
        elif isinstance(inner, dict) and key not in ("answer", "differs"):
            found |= paths(inner, f"{place}.")
    return found


def test_the_json_is_what_the_reference_says(bundle):
    section = REFERENCE.read_text().partition("## Explanation of an answer\n")[2].partition("\n## ")[0]
    documented = set().union(
        *(re.findall(r"`([^`]+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("| `"))
    )
    assert documented == paths(explained(bundle))


# -- Predictor --------------------------------------------------------------------------------------------------------


def test_the_predictor_explains_the_answer_that_it_gives_and_keeps_it_once(bundle, plain, monkeypatch, tmp_path):
    (plain / "version.json").write_text('{"version": "7"}')
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_BUNDLE", str(plain))
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path))
    kept = []
    predictor = Predictor(emit=kept.append)
    found = predictor.explain(JOB.upper(), CONTROL)
    assert [record["ipst"] for record in kept] == [JOB]
    assert found["answer"] == predictor.predict(JOB, CONTROL)
    assert found == explain(found["answer"], JOB, ROW, bundle)
    assert int(found["levels"][-1]["wallclock_s"]) == found["answer"]["clockTime"]
    assert predictor.explain("acs_8ph_01", {})["answer"] == mosaic_policy()
    assert [record["ipst"] for record in kept] == [JOB, JOB, "acs_8ph_01"]
