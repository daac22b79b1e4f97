"""Keeps labels of metrics bounded: Prometheus holds a series for every value that it has ever seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily

OTHER = "other"
"""What stands for all values that have no series of their own."""

_DECAY = 0.9
"""How much of what was counted until the last scrape still says who counts most."""
_STAYS = 2.0
"""How many times as often another must have come to take somebody's place, so that series do not flap."""
_FORGOTTEN = 0.01


class Bounded:
    """Lets the first ``most`` values of a label through; every other one is ``other``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Returns the value, or ``other``."""
        if value in self._known:
            return value
        if len(self._known) < self._most:
            self._known.add(value)
            return value
        return OTHER


class TopCounter:
    """A counter by pool and name that tells those ``most`` names apart that lately counted most.

    What is counted of all others is ``other``, by pool. A name that comes or goes takes nothing along, so
    no series ever falls. Belongs to one thread.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        most: int,
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        """``most`` may be set anew at any time."""
        self.most = most
        self._describes = (name, documentation, ("pool", label))
        self._told: dict[tuple[str, str], float] = {}
        self._shown: set[tuple[str, str]] = set()
        self._others: defaultdict[str, float] = defaultdict(float)
        self._recent: defaultdict[tuple[str, str], float] = defaultdict(float)
        if registry is not None:
            registry.register(self)

    def inc(self, pool: str, name: str) -> None:
        """Counts one."""
        key = (pool, name)
        self._recent[key] += 1.0
        if key not in self._shown and len(self._shown) < self.most:
            self._show(key)
        if key in self._shown:
            self._told[key] += 1.0
        else:
            self._others[pool] += 1.0

    def describe(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        self._choose()
        family = self._family()
        for key in sorted(self._shown):
            family.add_metric(key, self._told[key])
        for pool, count in sorted(self._others.items()):
            family.add_metric((pool, OTHER), count)
        yield family

    def _family(self) -> CounterMetricFamily:
        name, documentation, labels = self._describes
        return CounterMetricFamily(name, documentation, labels=labels)

    def _show(self, key: tuple[str, str]) -> None:
        self._shown.add(key)
        self._told.setdefault(key, 0.0)

    def _choose(self) -> None:
        def weight(key: tuple[str, str]) -> float:
            return self._recent[key] * (_STAYS if key in self._shown else 1.0)

        if len(self._recent) > self.most:
            best = sorted(self._recent, key=weight, reverse=True)[: self.most]
            self._shown.intersection_update(best)
            for key in best:
                self._show(key)
        for key in list(self._recent):
            self._recent[key] *= _DECAY
            if self._recent[key] < _FORGOTTEN and key not in self._shown:
                del self._recent[key]
