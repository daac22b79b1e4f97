"""For all tests: counts by level, and no skips for what this machine does not give."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out parametrized tests without a single case; pytest would report them as skipped."""
    items[:] = [
        item
        for item in items
        if not any(
            "empty parameter set" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip")
        )
    ]


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
