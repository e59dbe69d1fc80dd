"""The dashboard and the alarm rules of deploy/ ask for metrics that exist, in queries that parse."""

import json

import promql_parser
import pytest
import yaml

from calmlflow.predictor.metrics import METRICS
from tests.samples.commands import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
ASKED = [*PANELS, *((rule["alert"], rule["expr"]) for rule in ALERTS)]


def metrics_of(query: str) -> set[str]:
    """Names of the metrics in a query, from its syntax tree; those of a histogram without their ending."""
    found, waiting = set(), [promql_parser.parse(query)]
    while waiting:
        node = waiting.pop()
        waiting += [getattr(node, part) for part in ("expr", "lhs", "rhs", "param") if getattr(node, part, None)]
        waiting += getattr(node, "args", None) or []
        if isinstance(node, promql_parser.MatrixSelector):
            waiting.append(node.vector_selector)
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name if node.name in METRICS else node.name.rpartition("_")[0])
    return found


@pytest.mark.parametrize(("title", "query"), ASKED)
def test_a_query_parses_and_asks_for_metrics_that_exist(title, query):
    assert metrics_of(query)
    assert metrics_of(query) <= set(METRICS), title


def test_every_metric_is_watched():
    assert set().union(*(metrics_of(query) for _, query in ASKED)) == set(METRICS)


def test_panels_do_not_lie_on_each_other_and_alarms_say_what_is_wrong():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in ALERTS)
