"""Dashboards, alerts, runbooks and the table of metrics agree with one another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.dashboards_backends import DASHBOARDS
from benchmarks.dashboards_grafana import FOLDER, path_of, text_of
from benchmarks.dashboards_panels import Dashboard
from benchmarks.dashboards_promql import metrics_in
from benchmarks.dashboards_rules import TESTS, alerts, rules

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"
METRICS = ROOT / "docs" / "operations" / "metrics.md"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_dashboard_is_what_the_code_writes(dashboard: Dashboard) -> None:
    assert path_of(dashboard).read_text(encoding="utf-8") == text_of(dashboard), (
        "write it anew: python -m benchmarks.dashboards_grafana"
    )


def test_folder_holds_the_dashboards_and_nothing_else() -> None:
    assert sorted(FOLDER.iterdir()) == sorted(map(path_of, DASHBOARDS))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_fill_the_grid_without_overlap(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(text_of(dashboard))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"].endswith(".")
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOKS
        assert anchor == alert["alert"].lower()


def test_runbooks_are_those_of_the_alerts() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]


def test_every_alert_has_a_case_that_fires_it() -> None:
    cases = [case["name"] for case in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]]
    assert cases == [*(alert["alert"] for alert in alerts()), "all is well"]


def queries() -> dict[str, str]:
    """Returns every expression by where it stands."""
    found = {f"{rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for dashboard in DASHBOARDS:
        for panels in dashboard.rows.values():
            for panel in panels:
                for number, (expression, _) in enumerate(panel.queries):
                    found[f"{dashboard.uid}: {panel.title} {number}"] = expression
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum by (a, le) (rate(x_total{job=~"y(z)", le="0.1"}[5m])) > 0.5', {"x_total"}),
        ("x / on (pool) group_left (le) y and on () z offset 1h", {"x", "y", "z"}),
        ("max(lorauter:a:b) or vector(0)", {"lorauter:a:b"}),
        ("histogram_quantile(0.99, sum by (le) (rate(h_bucket[$__rate_interval])))", {"h_bucket"}),
    ],
)
def test_metrics_of_an_expression(expression: str, expected: set[str]) -> None:
    assert metrics_in(expression) == expected


def documented() -> dict[str, str]:
    """Returns the metrics of the table by name, with their kinds."""
    rows = re.findall(r"^\| `(lorauter_\w+)` \| (\w+) \|", METRICS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def series_of(name: str, kind: str) -> set[str]:
    """Returns the names of the series of a metric."""
    if kind == "histogram":
        return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {name}


def test_queries_read_only_what_is_documented_or_recorded() -> None:
    known = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    for name, kind in documented().items():
        known |= series_of(name, kind)
    unknown = {
        where: names - known for where, text in queries().items() if (names := metrics_in(text)) - known
    }
    assert unknown == {}
