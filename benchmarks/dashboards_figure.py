"""Draws a dashboard's panels with their series, roughly as Grafana does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.dashboards_panels import Dashboard, Panel
from benchmarks.dashboards_prometheus import Series
from benchmarks.plotting import GRID, RECIPE

_COLUMNS = 3
_MOST_NAMED = 8
"""Lines that are named below a panel; Grafana scrolls."""


def draw(dashboard: Dashboard, found: Mapping[str, Sequence[Series]], path: Path) -> None:
    """Writes a page; ``found`` is by ``title/legend`` of the panels' queries."""
    panels = [panel for row in dashboard.rows.values() for panel in row]
    rows = math.ceil(len(panels) / _COLUMNS)
    with mpl.rc_context({**RECIPE, "font.size": 7.5}):
        figure = Figure(figsize=(13, 2.7 * rows), layout="constrained")
        grid = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
        times = [at for series in found.values() for line in series for at, _ in line.points]
        for axes, panel in zip(grid, panels, strict=False):
            lines = [line for _, legend in panel.queries for line in found[f"{panel.title}/{legend}"]]
            _panel(axes, panel, lines, min(times))
            axes.set_xlim(0, max(times) - min(times))
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(dashboard.title, x=0.01, ha="left", fontsize=12)
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Axes, panel: Panel, lines: Sequence[Series], begin: float) -> None:
    lines = sorted(lines, key=lambda line: -max(value for _, value in line.points))
    for line in lines:
        axes.plot([at - begin for at, _ in line.points], [value for _, value in line.points], lw=1)
    unit = "" if panel.unit == "short" else f"  [{panel.unit}]"
    axes.set_title(f"{panel.title}{unit}", loc="left", fontsize=8, fontweight="bold")
    axes.grid(color=GRID, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    is_zero = all(value == 0 for line in lines for _, value in line.points)
    axes.set_ylim((0, 1) if is_zero else (min(0.0, low), high))
    names = [line.name or "none" for line in lines[:_MOST_NAMED]]
    more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
    handles = [*axes.get_lines()[:_MOST_NAMED], *(axes.plot([], [], lw=0) if more else [])]
    axes.legend(
        handles,
        [*names, *more],
        fontsize=6,
        frameon=False,
        ncols=2,
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
    )
