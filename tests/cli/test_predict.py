"""`calmlflow predict`: one answer as JSON, and its explanation for those who ask."""

import json
import subprocess
import sys

import numpy as np
import pytest

from calmlflow.cli.predict import predict
from calmlflow.hst.features import job_features, parse_control
from calmlflow.predictor.evidence import Finished
from calmlflow.predictor.explain import as_text
from tests.samples.commands import ROOT
from tests.samples.predictor_samples import write_bundle

JOB = "j8c601020"
CONTROL = ROOT / "examples" / f"{JOB}_MemModelFeatures.txt"
WORDS = [JOB, "--control", str(CONTROL)]


@pytest.fixture(autouse=True)
def baked(tmp_path, monkeypatch):
    """A bundle that answers without a registry."""
    row = job_features(JOB, parse_control(CONTROL.read_text()))
    one = Finished(np.array([row]) * 1.0, np.array([JOB]), np.array([1.25]), np.array([310.0]), np.array([1]))
    folder = write_bundle(tmp_path / "bundle", evidence=one)
    (folder / "version.json").write_text('{"version": "7"}')
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI", "CALMLFLOW_EMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_BUNDLE", str(folder))
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path / "home"))


def printed(capsys, *words):
    predict(words)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("words", [WORDS, ["acs_8ph_01"]])
def test_an_explanation_holds_the_same_answer(capsys, words):
    plain = printed(capsys, *words)
    assert printed(capsys, *words, "--json") == plain
    found = json.loads(printed(capsys, *words, "--json", "--explain"))
    assert json.dumps(found["answer"]) + "\n" == plain
    assert printed(capsys, *words, "--explain") == as_text(found) + "\n"


def test_the_evidence_of_the_bundle_is_shown(capsys):
    assert f"Last run of {JOB}: 1.250 GB, 310 s." in printed(capsys, *WORDS, "--explain")


def test_the_policy_is_explained(capsys, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CALMLFLOW_BUNDLE", str(tmp_path / "none"))
    out = printed(capsys, *WORDS, "--explain", "--policy-fallback")
    assert "Note: No version of the bundle could be had" in out
    assert "answering by policy" in caplog.text


@pytest.mark.parametrize(("option", "expected"), [("--json", "False"), ("--explain", "True")])
def test_only_an_explanation_loads_what_shows_it(option, expected):
    code = f"""
import sys
from calmlflow.__main__ import main
sys.argv = ["calmlflow", "predict", *{WORDS!r}, {option!r}]
main()
print(*(name in sys.modules for name in ("rich", "calmlflow.predictor.explain")), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.split() == [expected, expected]
