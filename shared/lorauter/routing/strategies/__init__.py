"""The strategies, by name: each is one file here, with one class, listed below."""

from __future__ import annotations

from lorauter.errors import InvalidArgument
from lorauter.routing.strategies.default import DefaultStrategy
from lorauter.routing.strategies.paper import PaperStrategy
from lorauter.routing.strategies.paper_tuned import PaperTunedStrategy
from lorauter.routing.strategies.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (DefaultStrategy(), PaperStrategy(), PaperTunedStrategy())
}


def strategy_named(name: str) -> Strategy:
    """Returns a strategy; raises InvalidArgument (UNKNOWN_STRATEGY) that names the known ones."""
    if name not in STRATEGIES:
        known = ", ".join(sorted(STRATEGIES))
        raise InvalidArgument(
            "UNKNOWN_STRATEGY",
            f"strategy {name[:80]!r} is unknown: use one of {known}",
            field="strategy",
            known=known,
        )
    return STRATEGIES[name]
