"""Adds up what the parts of a run of faults found, and says what of it breaks a promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

Report = dict[str, Any]

RECOVERY_SECONDS = 30.0
"""The promise: 99 of 100 kills are recovered from in this time."""

_ZERO = ("lost", "divergent", "repaired", "violations", "errors_during_swaps", "duplicated", "unsettled")
_ROWS = (
    *("changes", "kills", "lost", "duplicated", "divergent", "repaired", "unsettled", "crash_trials"),
    *("violations", "alias_swaps", "routes_during_swaps", "errors_during_swaps", "stale_during_swaps"),
    "control_lost",
)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least ``share`` of the values do not exceed; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def figures(parts: Sequence[Report]) -> Report:
    """Returns the figures of a run, with ``words`` on what went wrong. Each part names its ``kind``."""
    kills, trials = _of(parts, "kills"), _of(parts, "trials")
    swaps, controls = _of(parts, "swaps"), _of(parts, "control")
    recovery = [seconds for part in kills for seconds in part["recovery_s"]]
    return {
        "changes": sum(part["changes"] for part in kills),
        "kills": sum(part["kills"] for part in kills),
        **{
            name: sum(part["verdict"][name] for part in kills)
            for name in ("lost", "duplicated", "divergent", "unsettled")
        },
        "repaired": sum(part["repaired"] for part in kills),
        "recovery_s": {
            "p50": round(percentile(recovery, 0.5), 2),
            "p99": round(percentile(recovery, 0.99), 2),
        },
        "crash_trials": sum(part["trials"] for part in trials),
        "violations": sum(part["violations"] for part in trials),
        "trials_by_point": _by_point(trials),
        "alias_swaps": sum(part["swaps"] for part in swaps),
        "routes_during_swaps": sum(part["routes"] for part in swaps),
        "errors_during_swaps": sum(part["errors"] + part["mixed"] for part in swaps),
        "stale_during_swaps": sum(part["stale"] for part in swaps),
        "control_lost": sum(part["verdict"]["lost"] for part in controls),
        "seconds_by_part": _seconds(parts),
        "words": [words for part in (*kills, *trials, *swaps) for words in _words(part)],
    }


def failures(report: Report) -> list[str]:
    """Returns in words which promises a run's figures break."""
    wrong = [f"{name} is {report[name]}, not 0" for name in _ZERO if report[name]]
    if report["recovery_s"]["p99"] > RECOVERY_SECONDS:
        wrong.append(f"recovery took {report['recovery_s']['p99']} s at the 99th percentile")
    if report["control_lost"] < 1:
        wrong.append("the control without an outbox lost nothing: this harness would not see a loss")
    return wrong


def table(report: Report) -> Table:
    """Returns the figures for people."""
    shown = Table("", "", title="faults", show_header=False)
    for name in _ROWS:
        shown.add_row(name.replace("_", " "), f"{report[name]:,}")
    recovery = report["recovery_s"]
    shown.add_row("recovery p50 / p99", f"{recovery['p50']} / {recovery['p99']} s")
    return shown


def _of(parts: Sequence[Report], kind: str) -> list[Report]:
    return [part for part in parts if part["kind"] == kind]


def _by_point(trials: Sequence[Report]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in trials:
        counts[part["point"]] = counts.get(part["point"], 0) + part["trials"]
    return counts


def _seconds(parts: Sequence[Report]) -> dict[str, float]:
    """Seconds of each kind; trials of several points run together, so the longest counts."""
    kinds = ("kills", "trials", "swaps", "control")
    return {kind: max((part["seconds"] for part in _of(parts, kind)), default=0.0) for kind in kinds}


def _words(part: Report) -> list[str]:
    found: list[str] = part["words"] if "words" in part else part["verdict"]["words"]
    return found
