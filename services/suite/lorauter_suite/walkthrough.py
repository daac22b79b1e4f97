"""The main job end to end, on real parts: register, embed, match, route, generate, compare with the base."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lorauter import Client
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_ID, DemoTask, demo_tasks

SEED = 20260121
CONCURRENCY = 8
"""Requests under way at once: enough to fill the engine's batches on two cores."""


@dataclass(frozen=True, slots=True)
class Query:
    """A test query with the answer it should get."""

    task: str
    text: str
    expected: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query got, routed and from the bare base."""

    query: Query
    routed: gateway_pb2.GenerateResponse
    base: gateway_pb2.GenerateResponse

    @property
    def routed_is_right(self) -> bool:
        """Whether the routed answer is the expected one, white space around it aside."""
        return self.routed.text.strip() == self.query.expected.strip()

    @property
    def base_is_right(self) -> bool:
        """Whether the base's answer is the expected one, white space around it aside."""
        return self.base.text.strip() == self.query.expected.strip()


@dataclass(frozen=True, slots=True)
class Matching:
    """How far the pool is: tasks embedded, tasks matched, cells measured of those there are."""

    tasks: int
    embedded: int
    matched: int
    done: int
    total: int


def sample_queries(per_task: int) -> list[Query]:
    """Returns ``per_task`` seeded test queries of every demo task, in a seeded order."""
    chooser = random.Random(SEED)  # noqa: S311 - a sample, not a secret
    queries = [query for task in demo_tasks() for query in _of_task(task, per_task, chooser)]
    chooser.shuffle(queries)
    return queries


def _of_task(task: DemoTask, per_task: int, chooser: random.Random) -> list[Query]:
    examples = task.examples("test")
    chosen = chooser.sample(examples, min(per_task, len(examples)))
    return [Query(task.id, one["input"], one["target"], task.max_new_tokens) for one in chosen]


def follow_matching(client: Client, poll_seconds: float = 0.2) -> Iterator[Matching]:
    """Yields how far the demo pool is until every task is matched."""
    while True:
        tasks = list(client.registry.list_tasks(pool=POOL_ID))
        states = [task.state for task in tasks]
        matched = states.count(pb.TASK_STATE_MATCHED)
        operations = list(client.registry.list_operations(pool=POOL_ID))
        yield Matching(
            tasks=len(tasks),
            embedded=sum(state != pb.TASK_STATE_REGISTERED for state in states),
            matched=matched,
            done=sum(operation.done for operation in operations),
            total=sum(operation.total for operation in operations),
        )
        if tasks and matched == len(tasks):
            return
        time.sleep(poll_seconds)


def ask(client: Client, queries: list[Query], progress: Callable[[], None]) -> list[Answer]:
    """Answers every query twice, routed and by the bare base, a few at a time."""

    def one(query: Query) -> Answer:
        answer = Answer(
            query,
            routed=client.generate(query.text, pool=POOL_ID, max_new_tokens=query.max_new_tokens),
            base=client.generate(query.text, pool=POOL_ID, base=True, max_new_tokens=query.max_new_tokens),
        )
        progress()
        return answer

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        return list(threads.map(one, queries))
