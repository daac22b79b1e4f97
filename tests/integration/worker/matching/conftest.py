"""Matchings over a registry of two tasks and two adapters, and an evaluator that follows a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlmodel import Session, col, select

from lorauter.errors import FailedPrecondition
from lorauter.store import tables, write
from lorauter_worker.domain.pacing import Pace
from lorauter_worker.ports import Answer, Fault, Refused
from lorauter_worker.service.matching import Matcher
from lorauter_worker.service.parts import Means


@dataclass
class ScriptedEvaluator:
    """An evaluator that knows each adapter's share of right answers, and may be told to fail.

    ``right``: how many of each task's first questions an adapter's digest gets right; ``idle`` ones do as
    the base does.
    """

    right: dict[str, int] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    idle: AbstractSet[str] = frozenset()
    tells_likelihoods: bool = True
    before: Callable[[], None] = lambda: None
    asked: list[list[tuple[str, str]]] = field(default_factory=list)
    """Batches of (adapter's digest, target)."""
    opened: int = 0
    closed: int = 0
    backends: list[tuple[str, str]] = field(default_factory=list)
    takes_sets: bool = False

    def __call__(self, backends, timeout_seconds) -> ScriptedEvaluator:
        self.backends = list(backends)
        self.opened += 1
        return self

    def evaluate(self, questions, scoring, likelihood_only=False):
        self.before()
        if likelihood_only and not self.tells_likelihoods:
            raise FailedPrecondition("LIKELIHOOD_UNSUPPORTED", "it tells none")
        self.asked.append([(question.adapter, question.target) for question in questions])
        return [self._answer(question, likelihood_only) for question in questions]

    def close(self) -> None:
        self.closed += 1

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.asked]

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [cell for batch in self.asked for cell in batch]

    def _answer(self, question, likelihood_only):
        if question.adapter in self.faults:
            return Refused(self.faults[question.adapter], "weights do not fit")
        digest = "" if question.adapter in self.idle else question.adapter
        number = int(question.target.rsplit(" ", 1)[1])
        score = float(number < self.right.get(digest, 0))
        likelihood = -1.0 - number - len(digest) / 100 + score / 2
        return Answer(
            float("nan") if likelihood_only else score, likelihood if self.tells_likelihoods else float("nan")
        )


class Silent:
    """Wake-ups that nobody hears: the sweep finds the work."""

    def wake(self, name: str) -> None:
        """Does nothing."""


class Matchings:
    """The registry's matchings: what callers start, and what the worker made of it."""

    def __init__(self, registry, settings) -> None:
        self.registry = registry
        self.settings = settings

    def matcher(self, evaluator, pace: Pace | None = None, wakeups=None, **settings) -> Matcher:
        """A worker's matcher: exhaustive, unless told otherwise."""
        chosen = self.settings.model_copy(update={"matching_strategy": "exhaustive", **settings})
        means = Means(
            self.registry.engine,
            evaluator,
            Silent() if wakeups is None else wakeups,
            chosen,
            pace or Pace(0.0),
        )
        return Matcher(means, "test")

    def start(self, **request: Any) -> str:
        """Starts a matching as the registry does."""
        registry = self.registry
        with write(registry.engine, registry.tenant) as tx:
            operation = tables.Operation(
                tenant=registry.tenant,
                id=f"op-{tx.generation}",
                kind="matching",
                pool="main",
                request=request,
                create_time=tx.now,
                update_time=tx.now,
            )
            tx.session.add(operation)
            tx.owe("matching", operation.id)
        return operation.id

    def cancel(self, id_: str) -> None:
        """Asks an operation to stop, as the registry does."""
        with write(self.registry.engine, self.registry.tenant) as tx:
            operation = tx.session.get(tables.Operation, (self.registry.tenant, id_))
            operation.cancel_requested = True
            operation.update_time = tx.now
            tx.owe("matching", id_)

    def get(self, id_: str) -> tables.Operation:
        with Session(self.registry.engine) as session:
            return session.get(tables.Operation, (self.registry.tenant, id_))

    def parts(self, id_: str) -> list[tables.OperationPart]:
        part = tables.OperationPart
        with Session(self.registry.engine) as session:
            chosen = select(part).where(part.operation_id == id_).order_by(part.task_id)
            return list(session.exec(chosen))

    def rows(self) -> list[tables.Outbox]:
        """The outbox's matching work."""
        return [row for row in self.registry.outbox() if row.topic == "matching"]

    def affinities(self) -> dict[tuple[str, str, int], tables.Affinity]:
        """The affinities of current task versions by task, adapter and adapter version."""
        affinity, task = tables.Affinity, tables.Task
        with Session(self.registry.engine) as session:
            current = select(affinity).join(task).where(affinity.task_version == task.version)
            return {
                (row.task_id, row.adapter_id, row.adapter_version): row
                for row in session.exec(current.order_by(col(affinity.task_id)))
            }

    def scores(self) -> dict[tuple[str, str, int], tuple[float, int]]:
        return {key: (row.score, row.count) for key, row in self.affinities().items()}

    def stored(self, task: str, digest: str) -> dict[int, float]:
        """The scores that are stored of an adapter's content on a task, by example key."""
        with Session(self.registry.engine) as session:
            chosen = select(tables.Measurement).where(
                tables.Measurement.task_id == task, tables.Measurement.digest == digest
            )
            rows = session.exec(chosen).all()
            return {key: score for row in rows for key, score in zip(row.keys, row.scores, strict=True)}

    def free(self) -> None:
        """Lets leases end and delays pass."""
        self.registry.execute("UPDATE outbox SET lease_until = NULL, available_at = now()")

    def quarantined(self) -> dict[str, str]:
        """The quarantined adapters with their reasons."""
        version = tables.AdapterVersion
        with Session(self.registry.engine) as session:
            chosen = select(version.adapter_id, version.state_reason).where(version.state == "QUARANTINED")
            return dict(session.exec(chosen).all())

    @staticmethod
    @contextmanager
    def running(*matchers: Matcher) -> Iterator[None]:
        """Drains on a thread each, as worker processes do; ends when all have drained."""
        threads = [threading.Thread(target=matcher.drain) for matcher in matchers]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def matchings(registry, settings) -> Matchings:
    return Matchings(registry, settings)


@pytest.fixture
def scripted() -> type[ScriptedEvaluator]:
    return ScriptedEvaluator


@pytest.fixture
def pool(registry):
    """Two tasks of four examples, two adapters and a backend."""
    registry.add_pool()
    registry.add_backend("http://127.0.0.1:1")
    registry.put_task("french", registry.questions("french"))
    registry.put_task("sort", registry.questions("sort"))
    registry.add_version("a", "digest-a")
    registry.add_version("b", "digest-bb")
    registry.execute("UPDATE task SET state = 'EMBEDDED'")
    registry.execute("DELETE FROM outbox")
    return registry
