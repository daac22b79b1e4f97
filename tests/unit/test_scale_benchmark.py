"""The scale benchmark on small sizes: what it counts, and what it computes from that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.scale import POOLS, TARGET, show, unit_costs
from benchmarks.scale_core import deep_bytes, of_adapters, of_matching, of_tasks
from benchmarks.scale_model import UnitCosts, needed, slope
from benchmarks.scale_plot import draw

UNIT = UnitCosts(
    gateway_request_seconds=1e-3,
    router_known_seconds=1e-3,
    router_new_seconds=5e-3,
    router_task_bytes=10.0,
    router_adapter_bytes=1.0,
    router_fixed_bytes=100.0,
    root_task_bytes=36.0,
    root_adapter_bytes=200.0,
    database_task_bytes=1000.0,
    database_pair_bytes=10.0,
    evaluations_per_pair=2.0,
    refit_task_seconds=0.01,
    state_pair_seconds=1e-6,
    encode_adapter_seconds=1e-5,
)


def test_requests_cost_cores_and_their_mean_is_by_how_many_are_known() -> None:
    found = needed(replace(TARGET, requests_per_second=600.0, busy=0.6, known=0.5), UNIT)
    assert found["gateway_cores"] == pytest.approx(1.0)
    assert found["router_cores"] == pytest.approx(3.0)
    assert found["router_replicas"] == 3


def test_pools_divide_what_grows_with_pairs_and_leave_what_every_router_holds() -> None:
    one, ten = (needed(replace(TARGET, pools=pools), UNIT) for pools in (1, 10))
    assert one["evaluations"] == 10 * ten["evaluations"] == 2e9
    assert one["evaluations_of_one_adapter"] == 10 * ten["evaluations_of_one_adapter"]
    assert one["router_bytes"] == ten["router_bytes"]
    assert one["root_bytes"] == ten["root_bytes"] == 10_000 * 36 + 100_000 * 200
    assert one["change_seconds"] > ten["change_seconds"]


def test_slope_is_of_the_largest_sizes() -> None:
    assert slope({10.0: 7.0, 1.0: 0.0, 20.0: 27.0}) == 2.0


def test_memory_counts_each_array_once() -> None:
    array = np.zeros(1_000_000, np.uint8)
    assert 1_000_000 < deep_bytes([array, {"again": array}, array[:10]]) < 1_010_000


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    """A report of small sizes; what needs other processes is made up."""
    spent = {"gateway": 1.0, "router": 0.5, "stub": 0.1}
    row = {f"{name}_bytes": 1e3 for name in ("task", "validation_example", "cached_embedding", "affinity")}
    sizes = {100.0: 0.5, 400.0: 1.0}
    found: dict[str, object] = {
        "requests": {"50": spent, "400": spent, "new": spent, "rss_mb": spent},
        "database": {
            f"{pairs:g}": {
                **row,
                "measurement_bytes": 1e3,
                "measurement_rows": pairs,
                "task_rows": 10.0,
                "state_seconds": seconds,
            }
            for pairs, seconds in sizes.items()
        },
        "tasks": {str(size): of_tasks(size, 0) for size in (10, 40)},
        "adapters": {str(size): of_adapters(size, 5, 0) for size in (300, 900)},
        "matching": {str(size): of_matching(size, 0) for size in (100, 10_000)},
        "seconds": 1.0,
        "load": [0.0],
    }
    unit = unit_costs(found)
    found["targets"] = {str(pools): needed(replace(TARGET, pools=pools), unit) for pools in POOLS}
    return found


def test_what_grows_is_seen(report: dict[str, dict[str, dict[str, float]]]) -> None:
    few, many = report["tasks"]["10"], report["tasks"]["40"]
    assert many["points"] == 41 * 21 + 3
    assert many["task_point_bytes"] > 3 * few["task_point_bytes"]
    assert many["router_bytes"] > few["router_bytes"] > 100_000
    few, many = report["adapters"]["300"], report["adapters"]["900"]
    assert many["task_point_bytes"] == few["task_point_bytes"]
    assert 100 < (many["root_bytes"] - few["root_bytes"]) / 600 < 1_000
    few, many = report["matching"]["100"], report["matching"]["10000"]
    assert many["evaluations_per_adapter"] < few["evaluations_per_adapter"] < few["exhaustive_per_adapter"]


def test_report_is_printed_and_drawn(report: dict[str, object], tmp_path: Path) -> None:
    with (tmp_path / "shown.txt").open("w") as file:
        show(report, Console(file=file, width=160))
    shown = (tmp_path / "shown.txt").read_text()
    assert "100 pools" in shown
    assert "change seconds" in shown
    draw(report, tmp_path / "scale.svg")
    assert "Qdrant" in (tmp_path / "scale.svg").read_text()
    assert json.loads(json.dumps(report)) == report
