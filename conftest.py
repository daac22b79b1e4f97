"""Prints how many tests of each level ran, above pytest's own closing line."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the reports by the folder under tests/ that holds them."""
    counts: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            parts = report.nodeid.split("/")
            counts[parts[1] if len(parts) > 2 else "tests"] += 1
    if counts:
        levels = ", ".join(f"{level} {count}" for level, count in sorted(counts.items()))
        terminalreporter.write_line(f"tests by level: {levels}")
