"""Recorded decisions, decided anew in two ways, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from google.protobuf.timestamp_pb2 import Timestamp

from lorauter import Client
from lorauter.registry.v1 import registry_pb2
from lorauter.router.v1 import router_pb2

BATCH = 256
BATCH_BYTES = 2 * 1024 * 1024
"""Most decisions of one call, and about how many bytes of them: the router takes 256 and 4 MiB."""

NO_FEATURES = "recorded without what a replay needs"
OTHER_ENCODER = "recorded with another encoder"


@dataclass(frozen=True, slots=True)
class Change:
    """What is served instead, how often, and the id of a decision where it is."""

    before: str
    after: str
    count: int
    example: str


@dataclass(slots=True)
class Comparison:
    """What two ways to decide make of the same queries.

    Sums of expected utilities: of what was served ``before`` and is served ``after``, as today's way expects
    both; and of the latter ``as_expected`` by the other way itself.
    """

    replayed: int = 0
    best_single_changed: int = 0
    action_changed: int = 0
    before: float = 0.0
    after: float = 0.0
    as_expected: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)
    _changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(
        self, decision_id: str, before: router_pb2.RouteResponse, after: router_pb2.RouteResponse
    ) -> None:
        """Takes one query, decided in both ways."""
        self.replayed += 1
        self.best_single_changed += before.best_single.adapter_id != after.best_single.adapter_id
        self.action_changed += before.action != after.action
        self.before += before.best_single.expected_utility
        self.after += before.explanation.why_not[0].expected_utility
        self.as_expected += after.best_single.expected_utility
        change = (_served(before), _served(after))
        if change[0] != change[1]:
            self._changes[change] += 1
            self._examples.setdefault(change, decision_id)

    def changes(self, most: int | None = None) -> list[Change]:
        """Returns the changes of what is served where one adapter can be, the most frequent first."""
        return [
            Change(before, after, count, self._examples[before, after])
            for (before, after), count in self._changes.most_common(most)
        ]


def compare(
    client: Client,
    decisions: Iterable[registry_pb2.Decision],
    encoder_digest: str,
    strategy: str,
    constants: Mapping[str, float],
) -> Iterator[Comparison]:
    """Yields the growing comparison of decisions of one pool after each batch.

    Before: today's profile and the recorded strategy. After: ``constants`` instead, and ``strategy``, where
    they are given. Both are decided on one generation.
    """
    found = Comparison()
    for batch in batches(_replayable(decisions, encoder_digest, found)):
        pool = batch[0].pool
        changed = [_query(one, strategy or one.strategy) for one in batch]
        generation, now = "", ""
        while not now or generation != now:
            after = client.router.replay(
                pool=pool, queries=changed, encoder_digest=encoder_digest, constants=constants
            )
            as_it_was = [
                _query(one, one.strategy, new.best_single.adapter_id)
                for one, new in zip(batch, after.responses, strict=True)
            ]
            before = client.router.replay(pool=pool, queries=as_it_was, encoder_digest=encoder_digest)
            generation, now = before.responses[0].generation, after.responses[0].generation
        for one, old, new in zip(batch, before.responses, after.responses, strict=True):
            found.add(one.id, old, new)
        yield found
    yield found


def batches(decisions: Iterable[registry_pb2.Decision]) -> Iterator[list[registry_pb2.Decision]]:
    """Yields decisions in batches that the router takes."""
    batch: list[registry_pb2.Decision] = []
    size = 0
    for one in decisions:
        batch.append(one)
        size += one.ByteSize()
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def recorded(client: Client, pool: str, since: datetime, most: int) -> Iterator[registry_pb2.Decision]:
    """Yields the decisions of a pool since then, newest first."""
    moment = Timestamp()
    moment.FromDatetime(since)
    listed = client.registry.list_decisions(pool=pool, since=moment, with_features=True, page_size=BATCH)
    return islice(listed, most)


def _replayable(
    decisions: Iterable[registry_pb2.Decision], encoder_digest: str, found: Comparison
) -> Iterator[registry_pb2.Decision]:
    for one in decisions:
        if not one.vector:
            found.left_out[NO_FEATURES] += 1
        elif one.encoder_digest != encoder_digest:
            found.left_out[OTHER_ENCODER] += 1
        else:
            yield one


def _query(decision: registry_pb2.Decision, strategy: str, *asked: str) -> router_pb2.RecordedQuery:
    options = decision.options
    return router_pb2.RecordedQuery(
        vector=decision.vector,
        terms=decision.terms,
        strategy=strategy,
        max_adapters=options.max_adapters,
        tags=options.tags,
        exclude_tasks=options.exclude_tasks,
        exclude_adapters=options.exclude_adapters,
        why_not=asked,
    )


def _served(response: router_pb2.RouteResponse) -> str:
    """Returns what is served where one adapter can be: its id, `base`, or `refused`."""
    if response.action == router_pb2.ROUTE_ACTION_REFUSE:
        return "refused"
    return response.best_single.adapter_id
