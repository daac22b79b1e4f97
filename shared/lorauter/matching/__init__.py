"""Matching: which adapters are best at a task, by measuring as little as possible. Needs numpy only."""

from lorauter.matching.evidence import Evidence, choosing_count, evidence, mean_and_error, winner
from lorauter.matching.model import Plan, Strategy, Table, example_key
from lorauter.matching.strategies import DEFAULT_STRATEGY, STRATEGY_NAMES, strategy

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGY_NAMES",
    "Evidence",
    "Plan",
    "Strategy",
    "Table",
    "choosing_count",
    "evidence",
    "example_key",
    "mean_and_error",
    "strategy",
    "winner",
]
