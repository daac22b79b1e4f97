"""Routes queries: one snapshot for the whole request, one batched encode, then the pure decision."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lorauter.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LorauterError,
    PermissionDenied,
)
from lorauter.identifiers import decode_generation
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.deciding import check_options, decide
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.strategies.strategy import Query
from lorauter_router import metrics
from lorauter_router.domain import ServedSnapshot
from lorauter_router.ports import DecisionLog, Encoded, Made, QueryEncoder, Served, SnapshotSource

MAX_BATCH = 256
"""Most queries of one RouteBatch."""

_ANSWER_SHARE = 0.9
"""Share of a deadline spent waiting for a generation, so that the refusal still arrives."""

_YIELD_EVERY = 16
"""Decisions of a batch after which other requests get a turn."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query with its restrictions. ``text`` is the routed text; an empty ``pool`` is the only one."""

    text: str
    pool: str = ""
    options: RouteOptions = field(default_factory=RouteOptions)
    min_generation: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds spent; ``cached`` where the query's vector was known."""

    encode_ms: float
    decide_ms: float
    total_ms: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, what it was made on, and its name in logs, headers and replays."""

    decision_id: str
    pool: str
    decision: Decision
    generation: str
    profile_digest: str
    stale: bool
    timings: Timings


class RouterService:
    """What the router does for its callers, without any transport. Belongs to one event loop."""

    def __init__(
        self,
        source: SnapshotSource,
        encoder: QueryEncoder,
        log: DecisionLog,
        tenant: str,
        generation_wait_seconds: float,
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._log = log
        self._tenant = tenant
        self._wait_seconds = generation_wait_seconds

    def served(self) -> Served:
        """Returns what is served now; raises Unavailable (NO_SNAPSHOT)."""
        return self._source.current()

    async def route(self, questions: Sequence[Question], timeout_seconds: float | None) -> list[Answer]:
        """Answers 1 to 256 questions, all on one generation, in order.

        ``timeout_seconds`` is what is left of the caller's deadline, None without one. Raises
        InvalidArgument (BATCH_EMPTY, BATCH_TOO_LARGE, POOL_REQUIRED, INVALID_GENERATION and those of
        check_options), NotFound (UNKNOWN_POOL), PermissionDenied (TENANT_NOT_ALLOWED), FailedPrecondition
        (GENERATION_NOT_REACHED), Unavailable (NO_SNAPSHOT), Exhausted (ENCODER_BUSY), DeadlineExceeded.
        In a batch, metadata ``request`` is the number of the one at fault, from 0.
        """
        began = time.perf_counter()
        self._check(questions)
        try:
            async with asyncio.timeout(timeout_seconds):
                served = await self._served_for(questions, timeout_seconds)
                for number, question in enumerate(questions):
                    with _naming(number, questions):
                        served.snapshot.pool(question.pool)
                at = time.perf_counter()
                encoded = await self._encoder.encode([question.text for question in questions])
                encode_seconds = time.perf_counter() - at
                metrics.STAGE_SECONDS.labels("encode").observe(encode_seconds)
                return await self._decide(questions, encoded, served, began, encode_seconds)
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED", "the deadline passed before the query was routed: allow more time"
            ) from None

    def _check(self, questions: Sequence[Question]) -> None:
        if not questions:
            raise InvalidArgument("BATCH_EMPTY", "requests is empty: send 1 to 256", field="requests")
        if len(questions) > MAX_BATCH:
            raise InvalidArgument(
                "BATCH_TOO_LARGE",
                f"requests has {len(questions)}: send at most {MAX_BATCH}",
                field="requests",
            )
        for number, question in enumerate(questions):
            with _naming(number, questions):
                check_options(question.options)
                if question.tenant and question.tenant != self._tenant:
                    raise PermissionDenied(
                        "TENANT_NOT_ALLOWED",
                        "the caller may not act for another tenant: leave tenant empty",
                        field="tenant",
                    )

    async def _served_for(self, questions: Sequence[Question], timeout_seconds: float | None) -> Served:
        """Returns the snapshot to answer on, of the strictest generation asked for or a later one."""
        asked = [decode_generation(q.min_generation) for q in questions if q.min_generation]
        if not asked:
            return self._source.current()
        wanted = max(asked)
        began = time.perf_counter()
        wait = self._wait_seconds
        if timeout_seconds is not None:
            wait = max(0.0, min(wait, _ANSWER_SHARE * timeout_seconds))
        await self._source.reached(wanted, wait)
        metrics.STAGE_SECONDS.labels("wait").observe(time.perf_counter() - began)
        served = self._source.current()
        if served.snapshot.snapshot.generation < wanted:
            raise FailedPrecondition(
                "GENERATION_NOT_REACHED",
                f"the router serves generation {served.snapshot.generation}, which is before min_generation: "
                "retry, or see whether the worker runs",
                current=served.snapshot.generation,
            )
        return served

    async def _decide(
        self,
        questions: Sequence[Question],
        encoded: Sequence[Encoded],
        served: Served,
        began: float,
        encode_seconds: float,
    ) -> list[Answer]:
        answers: list[Answer] = []
        for number, (question, query) in enumerate(zip(questions, encoded, strict=True)):
            if number and number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            at = time.perf_counter()
            pool = served.snapshot.compiled(question.pool)
            known = Query(query.vector, question.text)
            if self._log.keeps_features:
                known = replace(known, terms=known.words())
            decision = decide(pool, known, question.options)
            now = time.perf_counter()
            metrics.STAGE_SECONDS.labels("decide").observe(now - at)
            metrics.STAGE_SECONDS.labels("total").observe(now - began)
            metrics.DECISIONS.labels(pool.pool_id, decision.strategy, decision.action.value).inc()
            timings = Timings(
                encode_ms=0.0 if query.cached else 1e3 * encode_seconds,
                decide_ms=1e3 * (now - at),
                total_ms=1e3 * (now - began),
                cached=query.cached,
            )
            answers.append(_answer(pool.pool_id, decision, served, pool.profile.digest, timings))
            self._record(answers[-1], pool, question, known, served)
        return answers

    def _record(
        self, answer: Answer, pool: CompiledPool, question: Question, query: Query, served: Served
    ) -> None:
        self._log.record(
            Made(
                decision_id=answer.decision_id,
                time_ms=time.time_ns() // 1_000_000,
                pool=pool,
                decision=answer.decision,
                options=question.options,
                generation=answer.generation,
                encoder_digest=served.snapshot.snapshot.encoder_digest,
                stale=answer.stale,
                text=question.text,
                vector=query.vector,
                terms=query.terms,
            )
        )


@contextmanager
def _naming(number: int, questions: Sequence[Question]) -> Iterator[None]:
    """Adds to an error which question of a batch it is about."""
    try:
        yield
    except LorauterError as error:
        if len(questions) > 1:
            error.metadata["request"] = str(number)
        raise


def _answer(pool: str, decision: Decision, served: Served, profile_digest: str, timings: Timings) -> Answer:
    snapshot: ServedSnapshot = served.snapshot
    return Answer(
        decision_id=uuid.uuid4().hex,
        pool=pool,
        decision=decision,
        generation=snapshot.generation,
        profile_digest=profile_digest,
        stale=served.stale,
        timings=timings,
    )
