"""Alerts and dashboard ask for metrics and labels that a master really has, in PromQL that parses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

import wqcore
from wqcore.watch import page as layout
from wqcore.watch.exposition import METRICS

DEPLOY = Path(wqcore.__file__).parents[1] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/wqcore.rules.yml").read_text("utf-8"))["groups"]
DASHBOARD = json.loads((DEPLOY / "grafana/wqcore.json").read_text("utf-8"))
PAGE = (DEPLOY.parent / "docs/howto/metrics-and-health.md").read_text("utf-8")
ENDINGS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
LABELS = {metric.name + ending: {*metric.labels} for metric in METRICS for ending in ENDINGS[metric.type]}
TYPES = {metric.name + ending: metric.type for metric in METRICS for ending in ENDINGS[metric.type]}
TARGET = {"instance", "job"}
"""What Prometheus itself puts on every sample."""
VALUES = {
    "outcome": {"completed", "cancelled", "discarded"}, "state": {"boot", "working", "draining"},
    "table": {"job", "claim", "shard", "slot", "process", "history"}, "role": {"master", "keeper", "worker"},
    "result": set(layout.RESCUED),
}  # fmt: skip
VARIABLES = {"$__rate_interval": "5m", "$queue": "q", "$kind": "k"}


def rules() -> Iterator[Any]:
    for group in RULES:
        yield from group["rules"]


def queries() -> Iterator[tuple[str, str]]:
    """(where it is, PromQL with Grafana's variables filled in)."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    found = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    found += [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]
    for where, expr in found:
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        yield where, expr


def selectors(node: Any, ranged: str | None = None) -> Iterator[tuple[Any, str | None]]:
    """(vector selector, the function that is given its range, if any) of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node, ranged
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector, ranged
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument, node.func.name)
    elif isinstance(node, promql_parser.BinaryExpr):
        for side in (node.lhs, node.rhs):
            yield from selectors(side)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr | promql_parser.UnaryExpr):
        yield from selectors(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), node


def problems(expr: str) -> list[str]:
    """What is wrong with a query."""
    try:
        tree = promql_parser.parse(expr)
    except ValueError as error:
        return [f"it does not parse: {error}"]
    found, known = [], set(TARGET)
    for selector, function in selectors(tree):
        if selector.name not in LABELS:
            found.append(f"there is no {selector.name}")
            continue
        labels = LABELS[selector.name] | ({"le"} if selector.name.endswith("_bucket") else set())
        known |= labels
        if TYPES[selector.name] == "gauge" and function in ("rate", "increase"):
            found.append(f"{function} of the gauge {selector.name}")
        if TYPES[selector.name] != "gauge" and function is None:
            found.append(f"the counter {selector.name} without a rate")
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                found.append(f"{selector.name} has no label {matcher.name}")
            values = VALUES.get(matcher.name)
            if matcher.name == "cause":
                values = {*(layout.RESTARTS if "restarts" in selector.name else layout.RESCUES)}
            if values is not None:
                found += [f"{matcher.name} is never {value}" for value in matcher.value.split("|") if value not in values]
    for names in re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expr):
        found += [f"nothing here has the label {name}" for name in names.split(", ") if name not in known]
    return found


@pytest.mark.parametrize(("where", "expr"), list(queries()))
def test_each_query_parses_and_asks_for_what_there_is(where: str, expr: str) -> None:
    assert problems(expr) == []


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("sum by (queue (wqcore_running)", "does not parse"),
        ("rate(wqcore_jobs_total[5 minutes])", "does not parse"),
        ("wqcore_runnin > 1", "there is no wqcore_runnin"),
        ("rate(wqcore_jobs[5m])", "there is no wqcore_jobs"),
        ("sum by (kind) (wqcore_running)", "nothing here has the label kind"),
        ('wqcore_running{kind="x"}', "has no label kind"),
        ("rate(wqcore_running[5m])", "rate of the gauge"),
        ("sum(wqcore_jobs_total)", "without a rate"),
        ('rate(wqcore_jobs_total{outcome="failed"}[5m])', "outcome is never failed"),
        ('increase(wqcore_rescues_total{cause=~"died|stuck"}[5m])', "cause is never stuck"),
        ("sum by (le) (rate(wqcore_turn_fetched_jobs_count[5m]))", "nothing here has the label le"),
    ],
)
def test_a_query_that_is_wrong_is_found(expr: str, words: str) -> None:
    assert [problem for problem in problems(expr) if words in problem], problems(expr)


def test_every_alert_says_who_should_do_what_and_the_page_has_it() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = set(re.findall(r"\b(?:by) \(([^)]*)\)", rule["expr"])[:1] or [""])
        assert used <= set(", ".join(kept).split(", ")), f"{rule['alert']} shows labels that its expression drops"
        assert f"`{rule['alert']}`" in PAGE
    named = [rule["alert"] for rule in rules()]
    assert len(set(named)) == len(named)


def test_the_dashboard_shows_every_metric_and_its_variables_choose() -> None:
    asked = {selector.name for _, expr in queries() for selector, _ in selectors(promql_parser.parse(expr))}
    shown = {metric.name for metric in METRICS if asked & {metric.name + ending for ending in ENDINGS[metric.type]}}
    # the first is on /livez, and both are there for queries of your own
    assert {metric.name for metric in METRICS} - shown == {"wqcore_build_info", "wqcore_database_up"}
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "queue", "kind"}
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert label in LABELS[metric]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        for other in DASHBOARD["panels"]:
            there = other["gridPos"]
            apart = box["x"] >= there["x"] + there["w"] or there["x"] >= box["x"] + box["w"]
            apart = apart or box["y"] >= there["y"] + there["h"] or there["y"] >= box["y"] + box["h"]
            assert apart or panel is other, f"{panel['title']} lies on {other['title']}"
