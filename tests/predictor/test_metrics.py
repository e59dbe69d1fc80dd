"""Metrics in Prometheus' text format, as its own parser reads it, and in CloudWatch's embedded format."""

from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from calmlflow.predictor.metrics import METRICS, Measured, Tally, as_text, emf


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
    found = emf(
        {"Answers": Measured(1), "Milliseconds": Measured(2.5, "Milliseconds")}, {"Stage": "S"}, [["Stage"]], 5.5
    )
    (directive,) = found["_aws"]["CloudWatchMetrics"]
    assert found["_aws"]["Timestamp"] == 5500
    assert (directive["Namespace"], directive["Dimensions"]) == ("calmlflow", [["Stage"]])
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]} == {
        "Answers": "Count",
        "Milliseconds": "Milliseconds",
    }
    assert (found["Stage"], found["Answers"], found["Milliseconds"]) == ("S", 1, 2.5)
