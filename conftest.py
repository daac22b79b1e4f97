"""For all tests: the same examples on every machine, counts by level, and no skips for want of anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.budgets import LONG

# a slow machine is no failure, and what a run finds must be found again by who looks into it
hypothesis.settings.register_profile(
    "lorauter",
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("lorauter")

MOST_LINES, MOST_CHARACTERS = 12, 400
"""What a failure tells of each service's warnings."""

_WARNING = re.compile(r'"level": "(warning|error|critical)"|FATAL|PANIC')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out parametrized tests without a single case; pytest would report them as skipped."""
    items[:] = [
        item
        for item in items
        if not any(
            "empty parameter set" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip")
        )
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tells, with a failure, what services warned of meanwhile: a log is gone when it is asked for."""
    report = yield
    factory = getattr(item.config, "_tmp_path_factory", None)
    if report.failed and factory is not None:
        report.sections += list(_warnings(factory.getbasetemp(), call.start))
    return report


def _warnings(folder: Path, since: float) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("**/logs/*.log")):
        if path.stat().st_mtime >= since:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            told = [line[:MOST_CHARACTERS] for line in lines if _WARNING.search(line)][-MOST_LINES:]
            if told:
                yield f"warnings of {path.stem}", "\n".join(told)


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
