"""Draws what methods reach in each regime, with errors over pool seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lab_pools import REGIMES
from benchmarks.plotting import ACCENT, GRID, INK, PLAIN, RECIPE

SHOWN = {
    "base": "base alone",
    "constant": "best all-round adapter",
    "peft_linear": "paper's set, merged (PEFT linear)",
    "uniform_top3": "paper's set, even weights",
    "paper": "paper",
    "paper_tuned": "paper_tuned",
    "default": "default",
    "best_single": "best single, by test score",
}
TITLES = {
    "non_ood": "all there",
    "semi_ood": "own adapters away",
    "ood": "own task and adapters away",
}
Regimes = Mapping[str, Mapping[str, Mapping[str, float]]]


def draw(regimes: Regimes, path: Path) -> None:
    """Writes a panel of bars for each regime, as the file's suffix says.

    ``regimes`` is that part of the benchmark's report.
    """
    with mpl.rc_context(RECIPE):
        figure = Figure(figsize=(9.6, 3.2), facecolor="white", layout="constrained")
        for axes, regime in zip(figure.subplots(1, len(REGIMES), sharey=True), REGIMES, strict=True):
            _panel(axes, TITLES[regime], regimes[regime])
        figure.supxlabel("right answers, % of those of the task's own adapter", fontsize=9.0, color=INK)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)


def _panel(axes: Axes, title: str, methods: Mapping[str, Mapping[str, float]]) -> None:
    names = list(reversed(SHOWN))
    values = [methods[name]["percent_of_own"] for name in names]
    colours = [ACCENT if name == "default" else PLAIN for name in names]
    errors = [methods[name]["own_standard_error"] for name in names]
    axes.barh([SHOWN[name] for name in names], values, xerr=errors, color=colours, ecolor=INK, height=0.7)
    for place, (value, error) in enumerate(zip(values, errors, strict=True)):
        axes.text(value + error + 1.5, place, f"{value:.1f}", va="center", color=INK)
    axes.set_title(title, loc="left", color=INK)
    axes.set_xlim(0, 118)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
