"""How all figures look: readable as text, and the same bytes from the same figures."""

from __future__ import annotations

from typing import Any

ACCENT, PLAIN, INK, GRID = "#0072b2", "#b8b8b8", "#222222", "#dddddd"
RECIPE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "lorauter",
}
