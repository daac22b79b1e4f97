"""Chooses backends in turn, those that failed last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class Rotation:
    """Round robin per group. A failed member goes to the end until it is restored, and never away:
    with every member failed, they are still tried.
    """

    def __init__(self) -> None:
        self._turns: Counter[str] = Counter()
        self.failed: set[str] = set()

    def order(self, group: str, members: Sequence[str]) -> list[str]:
        """Returns ``members`` in the order to try them now; the next call begins one further."""
        if not members:
            return []
        start = self._turns[group] % len(members)
        self._turns[group] += 1
        turned = [*members[start:], *members[:start]]
        return sorted(turned, key=lambda member: member in self.failed)

    def fail(self, member: str) -> None:
        """Notes that a member failed."""
        self.failed.add(member)

    def restore(self, member: str) -> None:
        """Notes that a member works again, or is gone."""
        self.failed.discard(member)
