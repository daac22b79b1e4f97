"""Draws how what a deployment needs grows with its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.plotting import ACCENT, GRID, INK, RECIPE

SECOND = "#d55e00"
QDRANT_BYTES = 32e6
"""Qdrant's default limit of a request, `max_request_size_mb: 32`."""

Sized = Mapping[str, Mapping[str, float]]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Writes six panels of measured points, both axes logarithmic, as the file's suffix says."""
    tasks, adapters = report["tasks"], report["adapters"]
    with mpl.rc_context(RECIPE):
        figure = Figure(figsize=(9.6, 5.4), facecolor="white", layout="constrained")
        (a, b, c), (d, e, f) = figure.subplots(2, 3)
        _panel(
            a,
            "router's memory of the snapshot, MB",
            {"tasks": tasks, "adapters": adapters},
            "router_bytes",
            1e-6,
        )
        _panel(b, "a decision, encoding apart, ms", {"tasks": tasks, "adapters": adapters}, "decision_ms")
        _panel(c, "the index's root, MB", {"tasks": tasks, "adapters": adapters}, "root_bytes", 1e-6)
        c.axhline(QDRANT_BYTES / 1e6, color=INK, linewidth=0.8, linestyle=":")
        c.text(0.03, 0.8, "Qdrant's default limit", transform=c.transAxes, color=INK, va="bottom", fontsize=8)
        _panel(d, "refit after one more task, s", {"tasks": tasks}, "refit_one_more_seconds")
        pairs = {str(row["measurement_rows"]): row for row in report["database"].values()}
        _panel(e, "worker's read at a change, s", {"pairs of task and adapter": pairs}, "state_seconds")
        _panel(
            f,
            "evaluations an adapter costs a task",
            {"adapters of the pool": report["matching"]},
            "evaluations_per_adapter",
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)


def _panel(axes: Axes, title: str, series: Mapping[str, Sized], column: str, unit: float = 1.0) -> None:
    for colour, (name, sized) in zip((ACCENT, SECOND), series.items(), strict=False):
        sizes = [float(size) for size in sized]
        values = [unit * row[column] for row in sized.values()]
        axes.plot(sizes, values, marker="o", markersize=4, color=colour, linewidth=1.4, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [unit * row[column] for sized in series.values() for row in sized.values()]
    lowest, highest = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    axes.set_ylim(10.0**lowest, 10.0 ** max(highest, lowest + 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_number))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", color=INK, fontsize=9.0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) == 1:
        axes.set_xlabel(next(iter(series)), color=INK)
    else:
        axes.legend(frameon=False, fontsize=8, loc="best")


def _number(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
