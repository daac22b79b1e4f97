"""Draws risk against coverage: what the share of queries that is kept scores, by what decides who is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plotting import GRID, INK, RECIPE
from benchmarks.studies_untypical import Curve

STYLES = {
    "typicality": ("#0072b2", "-"),
    "largest probability": ("#d55e00", "--"),
    "largest expected utility": ("#009e73", "-."),
}
"""Okabe and Ito's colours, which people who see few colours tell apart, and lines that print in grey."""


def draw(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Writes one panel for each title with its curves, as the file's suffix says."""
    with mpl.rc_context(RECIPE):
        figure = Figure(figsize=(8.4, 3.5), facecolor="white", layout="constrained")
        for axes, (title, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _panel(axes, title, curves)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=len(names),
            frameon=False,
            title="kept by the largest",
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)


def _panel(axes: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    for name, curve in curves.items():
        colour, line = STYLES[name]
        axes.plot(
            [100 * share for share in curve["coverage"]],
            curve["percent"],
            line,
            color=colour,
            linewidth=1.8,
            label=name.removeprefix("largest "),
        )
    axes.set_title(title, loc="left", color=INK)
    axes.set_xlabel("queries kept, %")
    axes.set_ylabel("% of Oracle")
    axes.set_xlim(18, 102)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
