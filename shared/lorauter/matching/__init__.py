"""Matching: which adapters are best at a task, by measuring as little as possible. Needs numpy only."""

from lorauter.matching.compositions import FRESH, Judgement, candidates, judged, set_name
from lorauter.matching.evidence import Evidence, choosing_count, evidence, mean_and_error, winner
from lorauter.matching.model import Plan, Strategy, Table, example_key
from lorauter.matching.strategies import DEFAULT_STRATEGY, STRATEGY_NAMES, strategy

__all__ = [
    "DEFAULT_STRATEGY",
    "FRESH",
    "STRATEGY_NAMES",
    "Evidence",
    "Judgement",
    "Plan",
    "Strategy",
    "Table",
    "candidates",
    "choosing_count",
    "evidence",
    "example_key",
    "judged",
    "mean_and_error",
    "set_name",
    "strategy",
    "winner",
]
