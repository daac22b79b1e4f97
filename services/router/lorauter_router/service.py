"""Routes queries: one snapshot of each tenant for a request, what is remembered, batched encodes, candidates
where there are too many tasks, then the pure decision."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from lorauter import tracing
from lorauter.access import PUBLIC_TENANT
from lorauter.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LorauterError
from lorauter.identifiers import decode_generation, foreign_generation
from lorauter.routing.deciding import check_options
from lorauter.routing.strategies import strategy_named
from lorauter.routing.strategies.strategy import Query
from lorauter_router import metrics
from lorauter_router.memory import DecisionMemory, Remembered, key_of
from lorauter_router.ports import DecisionLog, Encoded, Made, Narrower, QueryEncoder, SnapshotSource
from lorauter_router.questions import Answer, Asked, Question, SearchKind, Timings, described
from lorauter_router.visibility import SeenPool, Snapshots, View

MAX_BATCH = 256
"""Most queries of one RouteBatch."""

_ANSWER_SHARE = 0.9
"""Share of a deadline spent waiting for a generation, so that the refusal still arrives."""

_YIELD_EVERY = 16
"""Queries of a batch after which other requests get a turn."""

_HEAD_START_SECONDS = 0.001
"""What the encoder's thread gets before words are weighed: only one of both runs Python at a time."""

_NO_QUERY = Query(np.zeros(0, np.float32))


class RouterService:
    """What the router does for its callers, without any transport. Belongs to one event loop."""

    def __init__(
        self,
        source: SnapshotSource,
        encoders: Mapping[str, QueryEncoder],
        narrower: Narrower,
        log: DecisionLog,
        memory: DecisionMemory,
        generation_wait_seconds: float,
    ) -> None:
        """``encoders`` are by digest: a query is encoded by the one that embedded the tasks of its pool."""
        self._source = source
        self._encoders = encoders
        self._narrower = narrower
        self._log = log
        self._memory = memory
        self._wait_seconds = generation_wait_seconds

    def snapshots(self) -> Snapshots:
        """Returns what is served now."""
        return self._source.current()

    async def route(self, questions: Sequence[Question], timeout_seconds: float | None) -> list[Answer]:
        """Answers 1 to 256 questions in order, all in pools of one tenant on one generation.

        ``timeout_seconds`` is what is left of the caller's deadline, None without one. Raises
        InvalidArgument (BATCH_EMPTY, BATCH_TOO_LARGE, POOL_REQUIRED, INVALID_GENERATION, FOREIGN_GENERATION
        and those of check_options), NotFound (UNKNOWN_POOL), FailedPrecondition (GENERATION_NOT_REACHED,
        TENANT_NOT_SERVED), Unavailable (NO_SNAPSHOT), Exhausted (ENCODER_BUSY), DeadlineExceeded. In a batch,
        metadata ``request`` is the number of the one at fault, from 0.
        """
        began = time.perf_counter()
        self._check(questions)
        try:
            async with asyncio.timeout(timeout_seconds):
                asked = await self._asked(questions, timeout_seconds)
                at = time.perf_counter()
                with tracing.span("encode", attributes={"lorauter.queries": len(asked)}):
                    asked = await self._encoded(asked)
                encode_seconds = time.perf_counter() - at
                metrics.STAGE_SECONDS.labels("encode").observe(encode_seconds)
                asked = await self._narrowed(asked)
                with tracing.span("decide") as span:
                    answers = await self._decide(asked, began, encode_seconds)
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

    async def _asked(self, questions: Sequence[Question], timeout_seconds: float | None) -> list[Asked]:
        """Returns the questions with their pools, of the generations asked for or later ones."""
        wanted = [_wanted(number, questions) for number in range(len(questions))]
        snapshots = await self._reached([each for each in wanted if each is not None], timeout_seconds)
        views: dict[str, View] = {}
        made: list[Asked] = []
        for number, question in enumerate(questions):
            with _naming(number, questions):
                view = views.get(question.tenant)
                if view is None:
                    view = views[question.tenant] = snapshots.view(question.tenant)
                seen = view.pool(question.pool)
                if (asked := wanted[number]) is not None and asked[0] != seen.tenant:
                    raise foreign_generation()
            made.append(self._recalled(question, seen))
        return made

    async def _reached(self, wanted: Sequence[tuple[str, int]], timeout_seconds: float | None) -> Snapshots:
        """Returns what is served, once it is of these generations by tenant or later ones."""
        if not wanted:
            return self._source.current()
        strictest: dict[str, int] = {}
        for tenant, generation in wanted:
            self._source.current().check(tenant)
            strictest[tenant] = max(generation, strictest.get(tenant, 0))
        began = time.perf_counter()
        wait = self._wait_seconds
        if timeout_seconds is not None:
            wait = max(0.0, min(wait, _ANSWER_SHARE * timeout_seconds))
        with tracing.span("wait"):
            await self._source.reached(strictest, wait)
        metrics.STAGE_SECONDS.labels("wait").observe(time.perf_counter() - began)
        snapshots = self._source.current()
        for tenant, generation in strictest.items():
            served = snapshots.of(tenant)
            if served.snapshot.generation < generation:
                raise FailedPrecondition(
                    "GENERATION_NOT_REACHED",
                    f"the router serves generation {served.generation}, which is before min_generation: "
                    "retry, or see whether the worker runs",
                    current=served.generation,
                )
        return snapshots

    def _recalled(self, question: Question, seen: SeenPool) -> Asked:
        digest, pool = seen.served.snapshot.digest, seen.compiled
        key = key_of(question.tenant, digest, pool.pool_id, question.text, question.options)
        known = None if question.options.explain else self._memory.recall(key)
        return Asked(question, seen.served, pool, key, known, _NO_QUERY)

    async def _encoded(self, asked: Sequence[Asked]) -> list[Asked]:
        """Returns the questions with their queries; words are weighed while the encoder's thread works."""
        new = [number for number, each in enumerate(asked) if each.known is None]
        found = list(asked)
        if not new:
            return found
        encoding = asyncio.ensure_future(self._vectors([asked[number] for number in new]))
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

    async def _vectors(self, asked: Sequence[Asked]) -> list[Encoded]:
        """Returns the questions' vectors, each by the encoder of its snapshot, apart by who asked."""
        groups: dict[tuple[str, str], list[int]] = {}
        for number, each in enumerate(asked):
            group = (each.served.snapshot.encoder_digest, each.question.tenant)
            groups.setdefault(group, []).append(number)
        calls = [
            self._encoders[digest].encode([asked[number].question.text for number in numbers], tenant)
            for (digest, tenant), numbers in groups.items()
        ]
        # a lone call needs no task of its own, which would start one turn of the loop later
        encoded = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        found = {
            number: vector
            for numbers, vectors in zip(groups.values(), encoded, strict=True)
            for number, vector in zip(numbers, vectors, strict=True)
        }
        return [found[number] for number in range(len(asked))]

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

    async def _narrowed(self, asked: list[Asked]) -> list[Asked]:
        """Returns the questions with candidates where their pools are too large to score every task."""
        if not any(self._narrower.applies(each.pool) for each in asked):
            return asked

        async def narrowed(each: Asked) -> Asked:
            if each.known is not None or not self._narrower.applies(each.pool):
                return each
            at = time.perf_counter()
            options = each.question.options
            with tracing.span("search"):
                few = await self._narrower.candidates(each.served, each.pool, each.query, options)
            seconds = time.perf_counter() - at
            metrics.STAGE_SECONDS.labels("search").observe(seconds)
            return replace(each, few=few, search_seconds=seconds)

        return list(await asyncio.gather(*map(narrowed, asked)))

    async def _decide(self, asked: Sequence[Asked], began: float, encode_seconds: float) -> list[Answer]:
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
            metrics.SEARCHES.labels(search.value).inc()
            metrics.decided(each.served.tenant, each.pool.pool_id, decision)
            timings = Timings(
                encode_ms=0.0 if each.cached else 1e3 * encode_seconds,
                search_ms=1e3 * each.search_seconds,
                decide_ms=1e3 * (now - at),
                total_ms=1e3 * (now - began),
                cached=each.cached,
            )
            served = each.served
            answer = Answer(
                decision_id=uuid.uuid4().hex,
                tenant=served.tenant,
                pool=each.pool.pool_id,
                decision=decision,
                generation=served.generation,
                encoder_digest=served.snapshot.encoder_digest,
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
                tenant=asked.question.tenant,
                decision_id=answer.decision_id,
                time_ms=time.time_ns() // 1_000_000,
                pool_tenant=answer.tenant,
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


@contextmanager
def _naming(number: int, questions: Sequence[Question]) -> Iterator[None]:
    """Adds to an error which question of a batch it is about."""
    try:
        yield
    except LorauterError as error:
        if len(questions) > 1:
            error.metadata["request"] = str(number)
        raise


def _wanted(number: int, questions: Sequence[Question]) -> tuple[str, int] | None:
    """Returns whose generation, and which, a question asks for: its tenant's own, or what is public."""
    question = questions[number]
    if not question.min_generation:
        return None
    with _naming(number, questions):
        try:
            return question.tenant, decode_generation(question.min_generation, question.tenant)
        except InvalidArgument as error:
            if error.reason != "FOREIGN_GENERATION":
                raise
        return PUBLIC_TENANT, decode_generation(question.min_generation, PUBLIC_TENANT)
