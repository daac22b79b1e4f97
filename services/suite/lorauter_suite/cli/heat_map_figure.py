"""Draws the grid of a heat map with matplotlib."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lorauter_suite.cli.heat_map import Grid

COLOURS = "YlGnBu"
"""Dark is good; of ColorBrewer's scales, one that is told apart by people who see few colours."""
DPI = 160
LONGEST = 16_000
"""Dots of the longer side at most: a larger picture is drawn with fewer dots to the inch."""
CELL = 0.24
"""Inches."""
CHARACTER = 0.075
"""Inches that a character of a label takes."""
GAP = 0.7
"""Cells between the base and the adapters."""
FULL, LEAST = 0.92, 0.3
"""Side of a square in cells: of one measured in full, and of the smallest."""
GREY, EDGE = "#e4e4e4", "#c9c9b4"
INK = "#222222"

RECIPE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "lorauter",
}


def draw(grid: Grid) -> Figure:
    """Returns the picture; its size grows with the grid."""
    rows, columns = grid.scores.shape
    left = 0.3 + CHARACTER * max(map(len, grid.tasks))
    right = 0.3 + CHARACTER * max(len(tag) for tag, _, _ in grid.groups)
    bottom = 0.25 + CHARACTER * max(map(len, (*grid.columns, "base")))
    top = 1.2
    width, height = (columns + GAP) * CELL, rows * CELL
    total_width, total_height = max(left + width + right, 7.2), bottom + height + top
    with mpl.rc_context(RECIPE):
        dpi = min(DPI, LONGEST / max(total_width, total_height))
        figure = Figure(figsize=(total_width, total_height), dpi=dpi, facecolor="white")
        place = (left / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(place)
        _draw_cells(axes, grid)
        _draw_labels(axes, grid)
        _draw_head(figure, grid)
    return figure


def save(figure: Figure, kind: str) -> bytes:
    """Returns the picture as ``png`` or ``svg``."""
    data = io.BytesIO()
    with mpl.rc_context(RECIPE):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(data, format=kind, metadata=metadata)
    return data.getvalue()


def _columns(grid: Grid) -> NDArray[np.float64]:
    """Returns the middles of the columns in cells: the base stands apart."""
    middles = np.arange(grid.scores.shape[1], dtype=np.float64)
    middles[1:] += GAP
    return middles


def _draw_cells(axes: Axes, grid: Grid) -> None:
    rows, columns = grid.scores.shape
    middles = _columns(grid)
    for first, last in ((0, 0), (1, columns - 1)):
        if last >= first:
            corner, width = middles[first] - 0.5, middles[last] - middles[first] + 1
            axes.add_patch(
                Rectangle(
                    (corner, -0.5), width, rows, facecolor=GREY, hatch="////", edgecolor="#b5b5b5", lw=0
                )
            )
    row, column = np.nonzero(~np.isnan(grid.scores))
    sides = LEAST + (FULL - LEAST) * np.sqrt(grid.shares[row, column])
    x, y = middles[column], row.astype(np.float64)
    axes.add_collection(_squares(x, y, np.full(len(x), 1.0), "white"))
    squares = _squares(x, y, sides, None)
    squares.set(edgecolor=EDGE, linewidth=0.5)
    squares.set_array(100 * grid.scores[row, column])
    squares.set_cmap(COLOURS)
    squares.set_clim(0, 100)
    axes.add_collection(squares)
    won = [(middles[place], number) for number, place in enumerate(grid.winners) if place >= 0]
    if won:
        stars = np.array(won)
        axes.scatter(
            stars[:, 0], stars[:, 1], marker="*", s=60, c="white", edgecolors="black", linewidths=0.7
        )
    axes.set_xlim(-0.5, middles[-1] + 0.5)
    axes.set_ylim(rows - 0.5, -0.5)


def _squares(
    x: NDArray[np.float64], y: NDArray[np.float64], sides: NDArray[np.float64], colour: str | None
) -> PolyCollection:
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    places = np.stack([x, y], axis=1)[:, None, :] + sides[:, None, None] * corners
    return PolyCollection(list(places), facecolors=colour, edgecolors="none", linewidths=0)


def _draw_labels(axes: Axes, grid: Grid) -> None:
    axes.set_xticks(_columns(grid), ["base", *grid.columns], rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(grid.tasks)), grid.tasks, fontsize=7.5)
    axes.get_xticklabels()[0].set_fontweight("bold")
    axes.tick_params(length=0, pad=3, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    end = _columns(grid)[-1] + 0.5
    for tag, first, last in grid.groups:
        if first:
            axes.plot([-0.5, end], [first - 0.5] * 2, color="white", lw=2.5, zorder=3, clip_on=False)
        if tag:
            axes.plot([end + 0.25] * 2, [first - 0.35, last + 0.35], color=INK, lw=1, clip_on=False)
            axes.text(end + 0.55, (first + last) / 2, tag, va="center", fontsize=7.5, color=INK)


def _draw_head(figure: Figure, grid: Grid) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.3 / height, _title(grid), fontsize=11, fontweight="bold", color=INK)
    made = f"{grid.evaluations:,} evaluations" if grid.evaluations else "imported"
    said = f"measured {_times(grid.began, grid.ended)} · {made}"
    figure.text(0.15 / width, 1 - 0.52 / height, said, fontsize=8, color="#555555")
    bar = figure.add_axes((0.2 / width, 1 - 0.82 / height, 1.5 / width, 0.11 / height))
    colours = ScalarMappable(Normalize(0, 100), COLOURS)
    figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=[0, 50, 100])
    bar.tick_params(length=2, labelsize=7, pad=1)
    figure.text(1.8 / width, 1 - 0.81 / height, "score %", fontsize=7.5)
    key = figure.add_axes((2.4 / width, 1 - 0.94 / height, 4.7 / width, 0.34 / height))
    _draw_key(key)


def _draw_key(axes: Axes) -> None:
    axes.set_xlim(0, 4.7 / CELL)
    axes.set_ylim(-0.7, 0.7)
    axes.axis("off")
    colour = mpl.colormaps[COLOURS](0.45)
    for x, share in ((0.6, 1.0), (1.7, 0.25), (2.5, 0.05)):
        side = LEAST + (FULL - LEAST) * share**0.5
        axes.add_patch(Rectangle((x - side / 2, -side / 2), side, side, facecolor=colour, lw=0))
    axes.text(3.2, 0, "on all, a quarter, few examples", va="center", fontsize=7.5)
    axes.add_patch(Rectangle((11.0, -0.5), 1, 1, facecolor=GREY, hatch="////", edgecolor="#b5b5b5", lw=0))
    axes.text(12.3, 0, "not measured", va="center", fontsize=7.5)
    axes.scatter([16.9], [0], marker="*", s=60, c="white", edgecolors="black", linewidths=0.7)
    axes.text(17.5, 0, "best", va="center", fontsize=7.5)


def _title(grid: Grid) -> str:
    shown = len(grid.columns)
    adapters = (
        f"{shown} adapters"
        if shown == grid.adapter_count
        else (f"the {shown} best of {grid.adapter_count:,} adapters")
    )
    return f"{grid.pool}: {len(grid.tasks)} tasks by {adapters} and the base"


def _times(began: datetime, ended: datetime) -> str:
    if began.date() == ended.date():
        return f"{began:%Y-%m-%d} {began:%H:%M} to {ended:%H:%M} UTC"
    return f"{began:%Y-%m-%d} to {ended:%Y-%m-%d}"
