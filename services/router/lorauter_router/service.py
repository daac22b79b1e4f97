"""Routes queries: one snapshot for a request, what is remembered, one batched encode, candidates where there
are too many tasks, then the pure decision."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from lorauter import tracing
from lorauter.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LorauterError,
    PermissionDenied,
)
from lorauter.identifiers import decode_generation
from lorauter.routing.candidates import suffices
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.deciding import check_options, decide
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.strategies import strategy_named
from lorauter.routing.strategies.strategy import Query
from lorauter_router import metrics
from lorauter_router.memory import DecisionMemory, Remembered, key_of
from lorauter_router.ports import DecisionLog, Made, Narrower, Served, SnapshotSource

MAX_BATCH = 256
"""Most queries of one RouteBatch."""

_ANSWER_SHARE = 0.9
"""Share of a deadline spent waiting for a generation, so that the refusal still arrives."""

_YIELD_EVERY = 16
"""Queries of a batch after which other requests get a turn."""

_HEAD_START_SECONDS = 0.001
"""What the encoder's thread gets before words are weighed: only one of both runs Python at a time."""

_NO_QUERY = Query(np.zeros(0, np.float32))


class SearchKind(StrEnum):
    """How tasks were searched: all scored, or candidates of the index alone."""

    EXACT = "EXACT"
    CANDIDATES = "CANDIDATES"


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
    """Milliseconds spent; ``cached`` where the query's vector, or the decision itself, was known."""

    encode_ms: float
    search_ms: float
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
    encoder_digest: str
    profile_digest: str
    stale: bool
    search: SearchKind
    scored_tasks: int
    timings: Timings


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question with what was found out for it: its pool, its query and, where searched for, candidates.

    ``known`` is its decision, where it was made before. ``search_seconds`` were spent on candidates, also in
    vain.
    """

    question: Question
    pool: CompiledPool
    key: bytes
    known: Remembered | None
    query: Query
    cached: bool = True
    few: CompiledPool | None = None
    search_seconds: float = 0.0

    def decided(self) -> Remembered:
        """Returns the decision: the one before, on the candidates if they suffice, or on all tasks."""
        if self.known is not None:
            return self.known
        if self.few is not None:
            decision = decide(self.few, self.query, self.question.options)
            if suffices(self.few, decision):
                return self._made(decision, self.few)
        return self._made(decide(self.pool, self.query, self.question.options), self.pool)

    def _made(self, decision: Decision, scored: CompiledPool) -> Remembered:
        is_exact = scored is self.pool
        return Remembered(decision, len(scored.tasks), is_exact, self.query.vector, self.query.terms)


class RouterService:
    """What the router does for its callers, without any transport. Belongs to one event loop."""

    def __init__(
        self,
        source: SnapshotSource,
        narrower: Narrower,
        log: DecisionLog,
        memory: DecisionMemory,
        tenant: str,
        generation_wait_seconds: float,
    ) -> None:
        self._source = source
        self._narrower = narrower
        self._log = log
        self._memory = memory
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
                asked = self._asked(questions, served)
                at = time.perf_counter()
                with tracing.span("encode", attributes={"lorauter.queries": len(asked)}):
                    asked = await self._encoded(asked, served)
                encode_seconds = time.perf_counter() - at
                metrics.STAGE_SECONDS.labels("encode").observe(encode_seconds)
                asked = await self._narrowed(asked, served)
                with tracing.span("decide") as span:
                    answers = await self._decide(asked, served, began, encode_seconds)
                    span.set(described(answers[0]) if tracing.is_on() else {})
                return answers
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
        asked = [decode_generation(q.min_generation, self._tenant) for q in questions if q.min_generation]
        if not asked:
            return self._source.current()
        wanted = max(asked)
        began = time.perf_counter()
        wait = self._wait_seconds
        if timeout_seconds is not None:
            wait = max(0.0, min(wait, _ANSWER_SHARE * timeout_seconds))
        with tracing.span("wait"):
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

    def _asked(self, questions: Sequence[Question], served: Served) -> list[Asked]:
        digest = served.snapshot.snapshot.digest
        made: list[Asked] = []
        for number, question in enumerate(questions):
            with _naming(number, questions):
                pool = served.snapshot.compiled(question.pool)
            key = key_of(digest, pool.pool_id, question.text, question.options)
            known = None if question.options.explain else self._memory.recall(key)
            made.append(Asked(question, pool, key, known, _NO_QUERY))
        return made

    async def _encoded(self, asked: Sequence[Asked], served: Served) -> list[Asked]:
        """Returns the questions with their queries; words are weighed while the encoder's thread works."""
        new = [number for number, each in enumerate(asked) if each.known is None]
        found = list(asked)
        if not new:
            return found
        texts = [asked[number].question.text for number in new]
        encoding = asyncio.ensure_future(served.encoder.encode(texts))
        try:
            await asyncio.sleep(0)
            if not encoding.done():
                await asyncio.sleep(_HEAD_START_SECONDS)
            queries = await self._prepared([asked[number] for number in new])
            encoded = await encoding
        finally:
            encoding.cancel()
        for number, query, vector in zip(new, queries, encoded, strict=True):
            whole = replace(query, vector=vector.vector)
            found[number] = replace(asked[number], query=whole, cached=vector.cached)
        return found

    async def _prepared(self, asked: Sequence[Asked]) -> list[Query]:
        """Returns queries without vectors, with all that needs none."""
        made: list[Query] = []
        for number, each in enumerate(asked):
            if number and number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            query = replace(_NO_QUERY, text=each.question.text)
            is_scored = strategy_named(each.question.options.strategy).reads_words
            if is_scored and not self._narrower.applies(each.pool):
                query = query.prepared(each.pool.lexicon)
            elif is_scored or self._log.keeps_features:
                query = replace(query, terms=query.words())
            made.append(query)
        return made

    async def _narrowed(self, asked: list[Asked], served: Served) -> list[Asked]:
        """Returns the questions with candidates where their pools are too large to score every task."""
        if not any(self._narrower.applies(each.pool) for each in asked):
            return asked

        async def narrowed(each: Asked) -> Asked:
            if each.known is not None or not self._narrower.applies(each.pool):
                return each
            at = time.perf_counter()
            options = each.question.options
            with tracing.span("search"):
                few = await self._narrower.candidates(served.snapshot, each.pool, each.query, options)
            seconds = time.perf_counter() - at
            metrics.STAGE_SECONDS.labels("search").observe(seconds)
            return replace(each, few=few, search_seconds=seconds)

        return list(await asyncio.gather(*map(narrowed, asked)))

    async def _decide(
        self, asked: Sequence[Asked], served: Served, began: float, encode_seconds: float
    ) -> list[Answer]:
        answers: list[Answer] = []
        for number, each in enumerate(asked):
            if number and number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            at = time.perf_counter()
            made = each.decided()
            now = time.perf_counter()
            decision = made.decision
            search = SearchKind.EXACT if made.is_exact else SearchKind.CANDIDATES
            metrics.STAGE_SECONDS.labels("decide").observe(now - at)
            metrics.STAGE_SECONDS.labels("total").observe(now - began)
            metrics.DECISIONS.labels(each.pool.pool_id, decision.strategy, decision.action.value).inc()
            metrics.SEARCHES.labels(search.value).inc()
            metrics.decided(each.pool.pool_id, decision)
            timings = Timings(
                encode_ms=0.0 if each.cached else 1e3 * encode_seconds,
                search_ms=1e3 * each.search_seconds,
                decide_ms=1e3 * (now - at),
                total_ms=1e3 * (now - began),
                cached=each.cached,
            )
            snapshot = served.snapshot
            answer = Answer(
                decision_id=uuid.uuid4().hex,
                pool=each.pool.pool_id,
                decision=decision,
                generation=snapshot.generation,
                encoder_digest=snapshot.snapshot.encoder_digest,
                profile_digest=each.pool.profile.digest,
                stale=served.stale,
                search=search,
                scored_tasks=made.scored_tasks,
                timings=timings,
            )
            answers.append(answer)
            self._keep(each, made)
            self._record(answer, each, made)
        return answers

    def _keep(self, asked: Asked, made: Remembered) -> None:
        is_final = made.is_exact != self._narrower.applies(asked.pool)  # else the next search may find more
        if is_final and not asked.question.options.explain:
            self._memory.keep(asked.key, made)

    def _record(self, answer: Answer, asked: Asked, made: Remembered) -> None:
        self._log.record(
            Made(
                decision_id=answer.decision_id,
                time_ms=time.time_ns() // 1_000_000,
                pool=asked.pool,
                decision=answer.decision,
                options=asked.question.options,
                generation=answer.generation,
                encoder_digest=answer.encoder_digest,
                stale=answer.stale,
                text=asked.question.text,
                vector=made.vector,
                terms=made.terms if self._log.keeps_features else None,
            )
        )


def described(answer: Answer) -> tracing.Attributes:
    """Returns the attributes of the span in which a query was decided; none says what it was."""
    decision = answer.decision
    return {
        "lorauter.decision": answer.decision_id,
        "lorauter.pool": answer.pool,
        "lorauter.generation": answer.generation,
        "lorauter.stale": answer.stale,
        "lorauter.strategy": decision.strategy,
        "lorauter.action": decision.action.value,
        "lorauter.typicality": decision.typicality,
        "lorauter.adapters": [f"{each.arm.adapter_id}@{each.arm.version}" for each in decision.adapters],
        "lorauter.cached": answer.timings.cached,
    }


@contextmanager
def _naming(number: int, questions: Sequence[Question]) -> Iterator[None]:
    """Adds to an error which question of a batch it is about."""
    try:
        yield
    except LorauterError as error:
        if len(questions) > 1:
            error.metadata["request"] = str(number)
        raise
