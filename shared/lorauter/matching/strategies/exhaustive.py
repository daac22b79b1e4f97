"""Strategy ``exhaustive``: every adapter on every example."""

from __future__ import annotations

from lorauter.matching.model import Mask, Plan, Table
from lorauter.matching.rounds import Rounds, plan_rounds
from lorauter.matching.strategies.paper import best


class ExhaustiveStrategy:
    """Measures all there is; what the others are compared with."""

    name = "exhaustive"

    def plan(self, table: Table, arms: Mask | None = None) -> Plan:
        """See Strategy."""
        return plan_rounds(table, arms, Rounds(ends=(), most=(), rule=best, rest=0))
