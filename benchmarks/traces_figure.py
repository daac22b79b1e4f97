"""Draws a trace as a waterfall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.plotting import RECIPE
from benchmarks.traces_receiver import ReceivedSpan

COLOURS: Mapping[str, str] = {
    "gateway": "#3b6fb6",
    "router": "#2f9e77",
    "engine": "#c2703d",
    "registry": "#8a5fb0",
    "worker": "#b8476b",
}
_ROW_INCHES = 0.27
_NAMES_AT = -0.48
_INDENT_POINTS = 11
_BEGIN_SHARE = 0.012
"""A span shorter than this share of the trace is drawn as long, so that it is seen."""


def in_order(spans: Sequence[ReceivedSpan]) -> list[tuple[int, ReceivedSpan]]:
    """Returns the spans with their depth, each one's children below it, by their begin."""
    known = {span.id for span in spans}
    children: dict[str, list[ReceivedSpan]] = {}
    for span in sorted(spans, key=lambda each: each.begin):
        children.setdefault(span.parent if span.parent in known else "", []).append(span)

    def below(parent: str, depth: int) -> list[tuple[int, ReceivedSpan]]:
        found: list[tuple[int, ReceivedSpan]] = []
        for span in children.get(parent, []):
            found += [(depth, span), *below(span.id, depth + 1)]
        return found

    return below("", 0)


def draw(spans: Sequence[ReceivedSpan], title: str, path: Path) -> None:
    """Writes the waterfall of one trace."""
    with mpl.rc_context(RECIPE):
        rows = in_order(spans)
        figure = Figure(figsize=(11, 1.1 + _ROW_INCHES * len(rows)))
        axes = figure.subplots()
        _bars(axes, rows)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("milliseconds since the first span began")
        axes.set_title(title, loc="left", size=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        services = [name for name in COLOURS if any(span.service == name for span in spans)]
        patches = [Patch(color=COLOURS[name], label=name) for name in services]
        axes.legend(
            handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, frameon=False
        )
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _bars(axes: Axes, rows: Sequence[tuple[int, ReceivedSpan]]) -> None:
    begin = min(span.begin for _, span in rows)
    whole = (max(span.end for _, span in rows) - begin) / 1e6
    axes.set_xlim(0, whole * 1.09)
    for row, (depth, span) in enumerate(rows):
        start, took = (span.begin - begin) / 1e6, (span.end - span.begin) / 1e6
        length = max(took, _BEGIN_SHARE * whole)
        axes.barh(row, length, left=start, height=0.62, color=COLOURS[span.service])
        axes.text(start + length, row, f" {_milliseconds(took)}", va="center", size=7.5)
        name = span.name.removeprefix("lorauter.")
        axes.annotate(
            name,
            (_NAMES_AT, row),
            (_INDENT_POINTS * depth, 0),
            axes.get_yaxis_transform(),
            "offset points",
            va="center",
            size=8,
        )


def _milliseconds(took: float) -> str:
    return f"{took:.0f}" if took >= 100 else f"{took:.1f}" if took >= 1 else f"{took:.2f}"
