"""Clients route while tasks come, change and go, and while the index is away: no error, no mixture."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from lorauter import AsyncClient
from lorauter.client.options import NO_RETRY
from lorauter.encoder import Encoder
from lorauter.identifiers import decode_generation, encode_generation
from lorauter.index import QdrantIndex
from lorauter.registry.v1 import registry_pb2 as registry_pb
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing import Decision, compile_pool, decide
from lorauter.routing.model import Snapshot
from lorauter.routing.strategies.strategy import Query
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, seed_adapter
from lorauter_suite.suite import Addresses, Suite, SuiteOptions
from tests.budgets import tries

CLIENTS = tries(32, 12)
OUTAGE_CLIENTS = 12
TASKS = tries(20, 6)
ALIVE = tries(8, 4)
"""Tasks that live at a time."""
ADAPTERS = ("upper-word-a", "sort-word-a", "double-word-a", "shift-word-a")
FIRST = [
    *("planet", "violin", "river", "glacier", "novel", "bakery", "comet", "harbour", "falcon", "theorem"),
    *("castle", "orchid", "engine", "opera", "desert", "tunnel", "island", "carpet", "magnet", "vaccine"),
]
THEN = [
    *("tax", "sandal", "election", "piano", "virus", "tractor", "sonnet", "pension", "lantern", "whale"),
    *(
        "cheese",
        "robot",
        "monsoon",
        "passport",
        "chess",
        "volcano",
        "mirror",
        "ladder",
        "saffron",
        "goalkeeper",
    ),
]
NO_TASKS = ["what is the weather in Lima", "אבגד", "🦜🦜🦜"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Registry, index worker and router, warm, with four adapters and no backend: nothing is matched."""
    patient = {"LORAUTER_GENERATION_WAIT_SECONDS": "25"}
    options = SuiteOptions(services=("registry", "worker-index", "router"), environment=patient)
    with Suite(tmp_path_factory.mktemp("suite"), options) as started:
        with started.addresses.client() as client:
            client.registry.create_pool(
                id=POOL_ID, base_model="lorauter/demo-base", base_path=str(POOL_DIRECTORY / "base")
            )
            for name in ADAPTERS:
                seed_adapter(client, POOL_DIRECTORY / "adapters" / name)
            client.registry.create_task(id="first", pool=POOL_ID, metric="exact_match")
            client.registry.put_validation_set("first", [("any", "answer")])
            generation = client.registry.delete_task(id="first").generation
            deadline = time.monotonic() + 60
            while client.registry.get_generation().published_generation != generation:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield started


def questions(noun: str) -> list[str]:
    """The inputs of a validation set."""
    return [f"how heavy is the {noun}", f"who has ever seen a {noun}", f"tell me about the {noun}"]


def number_of(generation: str) -> int:
    """Returns the place of a generation in their order; 0 for none."""
    return decode_generation(generation, "default") if generation else 0


@dataclass
class Load:
    """Clients that ask without a pause until the block ends; whatever fails is raised there."""

    suite: Addresses
    texts: list[str]
    newest: str = ""
    """The generation that the last registry call returned."""
    answers: dict[tuple[str, str], set[bytes]] = field(default_factory=dict)
    """What was answered, by generation and text, without what differs between two calls."""
    count: int = 0
    last: pb.RouteResponse = field(default_factory=pb.RouteResponse)
    is_over: bool = False

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._ask(number))
            yield
            self.is_over = True

    async def _ask(self, number: int) -> None:
        texts = itertools.islice(itertools.cycle(self.texts), 5 * number, None)
        async with self.suite.aio_client(retry=NO_RETRY) as client:
            while not self.is_over:
                wanted = self.newest if number % 4 < 2 else ""
                if number % 2:
                    await self._batch(client, list(itertools.islice(texts, 4)), wanted)
                else:
                    text = next(texts)
                    self._record(text, await client.route(text, pool=POOL_ID, min_generation=wanted), wanted)

    async def _batch(self, client: AsyncClient, texts: list[str], wanted: str) -> None:
        asked = [pb.RouteRequest(query=text, pool=POOL_ID, min_generation=wanted) for text in texts]
        answers = (await client.router.route_batch(requests=asked)).responses
        assert len({answer.generation for answer in answers}) == 1
        for text, answer in zip(texts, answers, strict=True):
            self._record(text, answer, wanted)

    def _record(self, text: str, answer: pb.RouteResponse, wanted: str) -> None:
        assert number_of(answer.generation) >= number_of(wanted)
        self.count += 1
        self.last = answer
        kept = pb.RouteResponse()
        kept.CopyFrom(answer)
        for name in ("decision_id", "timings", "stale"):
            kept.ClearField(name)
        seen = self.answers.setdefault((answer.generation, text), set())
        seen.add(kept.SerializeToString(deterministic=True))

    async def eventually(self, holds: Callable[[pb.RouteResponse], bool], seconds: float = 60) -> None:
        """Returns once an answer that comes from now on fulfils a condition; fails if none does in time."""
        async with asyncio.timeout(seconds):
            began = self.count
            while self.count == began or not holds(self.last):  # noqa: ASYNC110  -- answers come by sockets
                await asyncio.sleep(0.01)


class Writer:
    """Changes the registry alone, so that it knows what each generation is, and reads it from the index."""

    def __init__(self, suite: Suite, client: AsyncClient, load: Load) -> None:
        self._client = client
        self._load = load
        self._index = QdrantIndex(suite.addresses.index_http)
        self._expected: dict[str, tuple[int, int]] = {}
        self.snapshots: dict[str, Snapshot] = {}
        """What the index held, by generation."""
        self.passed: set[str] = set()
        """Generations that nobody waited for."""

    async def change(self, write: Awaitable[str], **tasks: tuple[int, int] | None) -> None:
        """Awaits a write, then the generation it returned; ``tasks``: version and affinities from then on."""
        generation = self._load.newest = await write
        for name, now in tasks.items():
            self._expected.pop(name, None)
            self._expected |= {} if now is None else {name: now}
        answer = await self._client.route(NO_TASKS[0], pool=POOL_ID, min_generation=generation)
        assert answer.generation == generation
        snapshot = await asyncio.to_thread(self._index.read, "default")
        assert encode_generation(snapshot.generation, snapshot.tenant) == generation
        there = {t.task_id: (t.version, len(t.affinities)) for t in snapshot.pools[POOL_ID].tasks}
        assert there == self._expected
        self.snapshots[generation] = snapshot

    async def register(self, number: int) -> None:
        task = f"task{number}"
        made = await self._client.registry.create_task(id=task, pool=POOL_ID, metric="exact_match")
        if self.snapshots:  # without a validation set nothing is routed differently
            self.snapshots[made.generation] = list(self.snapshots.values())[-1]
            self.passed.add(made.generation)
        await self.change(self._put(task, FIRST[number]), **{task: (1, 0)})
        if number % 2:
            return
        scores = {ADAPTERS[number % 4]: 0.9, ADAPTERS[(number + 1) % 4]: 0.5, "base": 0.2}
        imported = self._client.registry.import_affinities(
            affinities=[
                registry_pb.Affinity(task_id=task, adapter_id=name, score=score, count=20)
                for name, score in scores.items()
            ]
        )
        await self.change(_generation(imported), **{task: (1, 3)})

    async def replace(self, number: int) -> None:
        task = f"task{number}"
        await self.change(self._put(task, THEN[number]), **{task: (2, 0)})

    async def delete(self, number: int) -> None:
        task = f"task{number}"
        await self.change(_generation(self._client.registry.delete_task(id=task)), **{task: None})

    def _put(self, task: str, noun: str) -> Awaitable[str]:
        examples = [(text, "answer") for text in questions(noun)]
        return _generation(self._client.registry.put_validation_set(task, examples))


async def _generation(write: Awaitable[Any]) -> str:
    """Returns the generation of a write's answer."""
    return (await write).generation


def assert_is(answer: pb.RouteResponse, decision: Decision, profile: str) -> None:
    """Checks every figure of an answer against a decision that was made here on one generation alone."""
    assert answer.profile_digest == profile
    assert answer.best_single.adapter_id == decision.best_single.adapter_id
    assert answer.typicality == pytest.approx(decision.typicality, abs=1e-4)
    shown: Any = {a.adapter_id: (a.version, a.digest, a.weight) for a in answer.adapters}
    assert shown == {
        one.arm.adapter_id: (one.arm.version, one.arm.digest, pytest.approx(one.weight, abs=1e-4))
        for one in decision.adapters
    }
    tasks: Any = {t.task_id: (t.measured, t.similarity, t.probability) for t in answer.tasks}
    assert tasks == {
        match.task_id: (
            match.measured,
            pytest.approx(match.similarity, abs=1e-4),
            pytest.approx(match.probability, abs=1e-4),
        )
        for match in decision.tasks
    }


@pytest.mark.timeout(300)
async def test_every_answer_is_of_one_generation_when_tasks_come_change_and_go(
    suite: Suite, encoder: Encoder
) -> None:
    texts = [questions(noun)[0] for pair in zip(FIRST, THEN, strict=True) for noun in pair] + NO_TASKS
    load = Load(suite.addresses, texts)
    async with suite.addresses.aio_client(retry=NO_RETRY) as client:
        writer = Writer(suite, client, load)
        await writer.register(0)
        before = set(writer.snapshots)
        async with load.running(CLIENTS):
            for number in range(1, TASKS + ALIVE):
                if number < TASKS:
                    await writer.register(number)
                if 0 <= number - ALIVE // 2 < TASKS:
                    await writer.replace(number - ALIVE // 2)
                if number >= ALIVE:
                    await writer.delete(number - ALIVE)
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    pools = {name: compile_pool(each.pools[POOL_ID]) for name, each in writer.snapshots.items()}
    for (generation, text), answers in load.answers.items():
        assert len(answers) == 1, "one generation gives one answer"
        decision = decide(pools[generation], Query(vectors[text], text))
        assert_is(pb.RouteResponse.FromString(answers.pop()), decision, pools[generation].profile.digest)
    assert writer.snapshots.keys() - writer.passed - before <= {name for name, _ in load.answers}


@asynccontextmanager
async def index_away(suite: Suite, way: signal.Signals) -> AsyncIterator[None]:
    """Halts the index for the block, or kills it at every start; on leaving it is ready again."""
    pid = suite.pids()["index"]
    os.kill(pid, way)
    if way is signal.SIGSTOP:
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
        return
    yield
    for _ in range(4):
        pid = await _other_pid(suite, pid)
        os.kill(pid, signal.SIGKILL)
    await _other_pid(suite, pid)
    await asyncio.to_thread(suite.await_ready)


async def _other_pid(suite: Suite, pid: int) -> int:
    async with asyncio.timeout(30):
        while (found := suite.pids().get("index", pid)) == pid:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("way", [signal.SIGSTOP, signal.SIGKILL], ids=["halted", "killed"])
async def test_answers_are_stale_and_then_fresh_again_when_the_index_is_away(
    suite: Suite, way: signal.Signals
) -> None:
    load = Load(suite.addresses, [questions(noun)[1] for noun in FIRST])
    task = f"away-{way.name.lower()}"
    async with suite.addresses.aio_client(retry=NO_RETRY) as client:

        async def put(noun: str) -> str:
            examples = [(text, "answer") for text in questions(noun)]
            return (await client.registry.put_validation_set(task, examples)).generation

        await client.registry.create_task(id=task, pool=POOL_ID, metric="exact_match")
        first = number_of(await put("flute"))
        async with load.running(OUTAGE_CLIENTS):
            await load.eventually(lambda answer: not answer.stale and number_of(answer.generation) >= first)
            async with index_away(suite, way):
                await load.eventually(lambda answer: answer.stale)
                changed = number_of(await put("cello"))
            await load.eventually(lambda answer: not answer.stale and number_of(answer.generation) >= changed)
        await client.registry.delete_task(id=task)
