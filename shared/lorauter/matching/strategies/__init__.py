"""The strategies, by name: each is one file here, with one class, listed below."""

from __future__ import annotations

from lorauter.errors import InvalidArgument
from lorauter.matching.model import Strategy
from lorauter.matching.strategies.default import DefaultStrategy
from lorauter.matching.strategies.exhaustive import ExhaustiveStrategy
from lorauter.matching.strategies.paper import PaperStrategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (DefaultStrategy(), ExhaustiveStrategy(), PaperStrategy())
}

STRATEGY_NAMES = tuple(sorted(STRATEGIES))
"""The names that a matching's strategy may have."""

DEFAULT_STRATEGY = "default"


def strategy(name: str) -> Strategy:
    """Returns a strategy; raises InvalidArgument (UNKNOWN_STRATEGY) that names the known ones."""
    if name not in STRATEGIES:
        known = ", ".join(STRATEGY_NAMES)
        raise InvalidArgument(
            "UNKNOWN_STRATEGY",
            f"matching strategy {name[:80]!r} is unknown: use one of {known}",
            field="strategy",
            known=known,
        )
    return STRATEGIES[name]
