"""What a registry acknowledged, and a judge who looks for it in PostgreSQL and in the index."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Engine, text

from lorauter import Client
from lorauter.encoder import Encoder
from lorauter.errors import DeadlineExceeded, LorauterError, Unavailable
from lorauter.identifiers import decode_generation
from lorauter.index import QdrantIndex
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.routing.model import Pool, Snapshot
from lorauter_worker.service.projection import Projector

T = TypeVar("T")

TENANT = "default"
EXAMPLES = 256
"""Most embedded examples of a task, as the worker's setting has it."""

INSIST_SECONDS = 120.0
_NOT_YET = "GENERATION_NOT_REACHED"
REST_SECONDS = 45.0
"""How long what dead publishers left may lie about: a reconciliation comes every 30 s."""

Key = tuple[str, str]
"""What a change was of: ("task", id), ("adapter", id) or ("backend", id)."""

_OWED = text("SELECT count(*) FROM outbox WHERE topic = 'index'")
_GENERATION = text("SELECT value, COALESCE(published, 0) FROM generation WHERE tenant = :tenant")


def insist(call: Callable[[], T], seconds: float = INSIST_SECONDS) -> T:
    """Makes a call until it is answered; with the same request_id that is safe for writes too.

    A generation that routers do not have is waited for as well: a machine may be slower than they wait.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except LorauterError as error:
            passes = isinstance(error, Unavailable | DeadlineExceeded) or error.reason == _NOT_YET
            if not passes or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def task_words(task: pb.Task) -> str:
    """Returns what must not be lost of a task."""
    return f"{task.etag} version {task.version} of {task.example_count}, tags {sorted(task.tags)}"


def adapter_words(adapter: pb.Adapter) -> str:
    """Returns what must not be lost of an adapter."""
    state = pb.AdapterState.Name(adapter.latest.state)
    return (
        f"{adapter.etag} version {adapter.latest.version} {state}, aliases {sorted(adapter.aliases.items())}"
    )


def backend_words(backend: pb.Backend) -> str:
    """Returns what must not be lost of a backend."""
    return f"{backend.etag} {pb.BackendState.Name(backend.state)}"


@dataclass
class Ledger:
    """All that was acknowledged, by any thread. Times are of time.monotonic()."""

    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    """Time and generation of every change."""
    tasks: dict[str, pb.Task | None] = field(default_factory=dict)
    """What was last acknowledged; None: deleted."""
    adapters: dict[str, pb.Adapter | None] = field(default_factory=dict)
    backends: dict[str, pb.Backend | None] = field(default_factory=dict)
    scores: dict[tuple[str, str], float] = field(default_factory=dict)
    """Imported, by task and adapter, on the task's current version."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, generation: str) -> None:
        """Counts a change that was acknowledged just now."""
        with self.lock:
            self.acknowledged.append((time.monotonic(), decode_generation(generation, TENANT)))

    def since(self, moment: float) -> int | None:
        """Returns the generation of the first change that was acknowledged after a moment."""
        with self.lock:
            later = [generation for when, generation in self.acknowledged if when > moment]
        return min(later, default=None)

    def __len__(self) -> int:
        with self.lock:
            return len(self.acknowledged)


@dataclass(frozen=True)
class Verdict:
    """What a judge found; all are 0 if every promise was kept.

    ``lost``: acknowledged changes or resources that PostgreSQL or the index does not have.
    ``duplicated``: changes that were made more often than they were acknowledged. ``divergent``: points of
    the index that differ from the registry projected anew. ``unsettled``: 1 if work was left in the end.
    """

    lost: int
    duplicated: int
    divergent: int
    unsettled: int
    words: tuple[str, ...]

    @property
    def violations(self) -> int:
        """How much is wrong in all."""
        return self.lost + self.duplicated + self.divergent + self.unsettled


class Judge:
    """Compares a ledger with PostgreSQL and with the index, once there is nothing left to do."""

    def __init__(self, client: Client, engine: Engine, index_url: str, encoder: Encoder, pool: str) -> None:
        self._client = client
        self._engine = engine
        self._index = QdrantIndex(index_url)
        self._encoder = encoder
        self._pool = pool

    def settle(self, seconds: float) -> bool:
        """Waits until no index work is left and the newest generation is published."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._engine.connect() as connection:
                newest, published = connection.execute(_GENERATION, {"tenant": TENANT}).one()
                owed = connection.execute(_OWED).scalar_one()
            if published == newest and not owed:
                return True
            time.sleep(0.05)
        return False

    def judge(self, ledger: Ledger, seconds: float = 90.0) -> Verdict:
        """Waits for quiescence, then compares; nothing may be written meanwhile."""
        settled = self.settle(seconds)
        with self._engine.connect() as connection:
            newest = connection.execute(_GENERATION, {"tenant": TENANT}).one().value
        generations = [generation for _, generation in ledger.acknowledged]
        words = [f"generation {number} is not there" for number in generations if number > newest]
        words += insist(lambda: self._missing_in_registry(ledger))  # it may just have died
        words += self._missing_in_index(ledger)
        duplicated = newest - len(set(generations))
        words += [f"{newest} changes were made, {len(generations)} acknowledged"] if duplicated else []
        lost = len(words) - bool(duplicated) + len(generations) - len(set(generations))
        return Verdict(lost, abs(duplicated), self.divergent(), int(not settled), tuple(words[:20]))

    def divergent(self) -> int:
        """Returns by how many points the index differs from the registry as projected from nothing.

        Surplus points harm nobody, and have until the next reconciliation to go.
        """
        deadline = time.monotonic() + REST_SECONDS
        while True:
            projector = Projector(self._engine, self._encoder, EXAMPLES)
            projection = projector.project(TENANT, time.monotonic() + 60)
            assert projection is not None
            check = self._index.verify(projection.snapshot, projection.examples)
            wrong = check.missing + check.surplus + (not check.current)
            if not wrong or not check.is_sound or time.monotonic() > deadline:
                return wrong
            time.sleep(0.5)

    def _missing_in_registry(self, ledger: Ledger) -> list[str]:
        registry = self._client.registry
        tasks = {task.id: task_words(task) for task in registry.list_tasks(pool=self._pool)}
        adapters = {each.id: adapter_words(each) for each in registry.list_adapters(pool=self._pool)}
        backends = {each.id: backend_words(each) for each in registry.list_backends()}
        words = _differing(
            "task", {id_: each and task_words(each) for id_, each in ledger.tasks.items()}, tasks
        )
        words += _differing(
            "adapter", {id_: each and adapter_words(each) for id_, each in ledger.adapters.items()}, adapters
        )
        words += _differing(
            "backend", {id_: each and backend_words(each) for id_, each in ledger.backends.items()}, backends
        )
        scores = {
            (each.task_id, each.adapter_id): each.score
            for each in registry.list_affinities(pool=self._pool)
            if each.adapter_id in adapters
        }
        return words + [
            f"score of {key} is {scores.get(key)}, not {score}"
            for key, score in ledger.scores.items()
            if scores.get(key) != score
        ]

    def _missing_in_index(self, ledger: Ledger) -> list[str]:
        try:
            snapshot = self._index.read(TENANT)
        except LorauterError as error:
            return [f"the index cannot be read: {error.reason}"]
        return missing_in_snapshot(ledger, snapshot, self._pool)


def missing_in_snapshot(ledger: Ledger, snapshot: Snapshot, pool_id: str) -> list[str]:
    """Returns in words what was acknowledged and is not so in a snapshot."""
    pool = snapshot.pools.get(pool_id)
    if pool is None:
        return [f"pool {pool_id} is not in the index"]
    return (
        _tasks_missing(ledger, pool) + _adapters_missing(ledger, pool) + _backends_missing(ledger, snapshot)
    )


def _tasks_missing(ledger: Ledger, pool: Pool) -> list[str]:
    found = {task.task_id: (task.version, sorted(task.tags)) for task in pool.tasks}
    wanted = {
        id_: (task.version, sorted(task.tags)) if task is not None and task.version else None
        for id_, task in ledger.tasks.items()
    }
    return [f"index: {words}" for words in _differing("task", wanted, found)]


def _adapters_missing(ledger: Ledger, pool: Pool) -> list[str]:
    found = {
        each.adapter_id: (each.version, sorted(each.aliases), not each.refusal)
        for each in sorted(pool.adapters, key=lambda each: each.version)
    }
    wanted = {
        id_: (
            each.latest.version,
            sorted(alias for alias, version in each.aliases.items() if version == each.latest.version),
            each.latest.state == pb.ADAPTER_STATE_ACTIVE,
        )
        for id_, each in ledger.adapters.items()
        if each is not None
    }
    return [f"index: {words}" for words in _differing("adapter", wanted, found)]


def _backends_missing(ledger: Ledger, snapshot: Snapshot) -> list[str]:
    found = {each.backend_id: each.draining for pool in snapshot.pools.values() for each in pool.backends}
    wanted = {
        id_: each.state != pb.BACKEND_STATE_ACTIVE
        for id_, each in ledger.backends.items()
        if each is not None
    }
    return [f"index: {words}" for words in _differing("backend", wanted, found)]


def _differing(noun: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Returns what is not as wanted, and what is there though it was never wanted."""
    wrong = [
        f"{noun} {id_} is {found.get(id_)!r}, not {value!r}"
        for id_, value in wanted.items()
        if found.get(id_) != value
    ]
    return wrong + [f"{noun} {id_} was never acknowledged" for id_ in found if id_ not in wanted]
