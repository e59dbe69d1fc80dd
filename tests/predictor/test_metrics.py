"""Metrics in Prometheus' text format, as its own parser reads it, and in CloudWatch's embedded format."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from calmlflow.errors import CalmlflowError
from calmlflow.predictor.metrics import METRICS, Tally, as_text, emf, serve_page


def read(text: str) -> dict[tuple, float]:
    """Name and labels of each sample -> value; kinds and helps must be those of the table."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name if family.name in METRICS else f"{family.name}_total"
        assert (family.type, family.documentation) == METRICS[name]
        found |= {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}
    return found


def test_labels_are_escaped_and_a_metric_without_samples_is_absent():
    name = "calmlflow_quarantine_open"
    odd = 'a "b" \\n\nc'
    text = as_text([(name, {"kind": odd}, 2.0), ("calmlflow_records", {}, 5), (name, {"kind": "x"}, 0)])
    assert read(text) == {(name, odd): 2, (name, "x"): 0, ("calmlflow_records",): 5}
    assert text.count("# TYPE") == 2
    assert as_text([]) == ""


def test_answers_of_threads_are_counted_by_source_and_time():
    tally = Tally()
    answers = [({"source": "registry", "unseen": True}, 0.25), ({"source": "cache"}, 0.3), ({"source": "cache"}, 5000)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda answer: tally.count(*answer), answers * 50))
    found = read(as_text(tally.samples("Staging")))
    name = "calmlflow_answer_milliseconds"
    expected = {
        ("calmlflow_answers_total", "Staging", "registry"): 50,
        ("calmlflow_answers_total", "Staging", "cache"): 100,
        ("calmlflow_unseen_answers_total", "Staging"): 50,
        (f"{name}_bucket", "Staging", "0.25"): 50,
        (f"{name}_bucket", "Staging", "0.5"): 100,
        (f"{name}_bucket", "Staging", "1000.0"): 100,
        (f"{name}_bucket", "Staging", "+Inf"): 150,
        (f"{name}_sum", "Staging"): 50 * 5000.55,
        (f"{name}_count", "Staging"): 150,
    }
    assert expected.items() <= found.items()


def test_embedded_metrics_name_their_units_and_dimensions():
    metrics = {"Answers": (1, "Count"), "Milliseconds": (2.5, "Milliseconds")}
    found = emf(metrics, {"Stage": "S"}, [["Stage"]], 5.5)
    (directive,) = found["_aws"]["CloudWatchMetrics"]
    assert found["_aws"]["Timestamp"] == 5500
    assert (directive["Namespace"], directive["Dimensions"]) == ("calmlflow", [["Stage"]])
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]} == {
        "Answers": "Count",
        "Milliseconds": "Milliseconds",
    }
    assert (found["Stage"], found["Answers"], found["Milliseconds"]) == ("S", 1, 2.5)


def test_the_page_is_made_anew_for_each_request_and_a_taken_port_is_told():
    texts = iter(["a 1\n", "a 2\n"])
    with serve_page(0, lambda: next(texts)) as server:
        for expected in ("a 1\n", "a 2\n"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=20) as page:
                assert page.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert page.read().decode() == expected
        with pytest.raises(CalmlflowError, match=rf"port {server.server_port} .*; expected a free port"):
            serve_page(server.server_port, str)
        server.shutdown()
