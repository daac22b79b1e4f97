"""What the transports call: generations and scores, awaited or streamed, cancelled when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from lorauter.errors import LorauterError
from lorauter_engine.domain.values import Finish, Job, Score, ScoreItem, Step
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import AdapterSet
from lorauter_engine.model.tokenizer import TextCodec
from lorauter_engine.service.residency import Residency
from lorauter_engine.service.rows import Row
from lorauter_engine.service.scheduler import Scheduler, overloaded
from lorauter_engine.service.scoring import Scoring

Value = TypeVar("Value")
Pairs = tuple[tuple[str, float], ...]
"""Digests and weights, as in a Job."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole generation."""

    steps: Sequence[Step]
    finish: Finish


@dataclass(slots=True)
class _Collected:
    """Outcomes of ``count`` rows, handed to the event loop at once: waking it costs as much as many tokens.

    That is when all have ended or, with ``must_all``, when the first has failed.
    """

    count: int
    must_all: bool
    done: Future[list[Completed | LorauterError]] = field(default_factory=Future)
    outcomes: dict[int, Completed | LorauterError] = field(default_factory=dict)

    def sink(self, place: int) -> Callable[[Step | LorauterError], None]:
        """Returns what takes the steps of the row at ``place``; all are called by one thread."""
        steps: list[Step] = []

        def take(event: Step | LorauterError) -> None:
            if isinstance(event, LorauterError):
                self._end(place, event)
                return
            steps.append(event)
            if event.finish is not None:
                self._end(place, Completed(steps, event.finish))

        return take

    def _end(self, place: int, outcome: Completed | LorauterError) -> None:
        self.outcomes[place] = outcome
        is_over = len(self.outcomes) == self.count or (self.must_all and isinstance(outcome, LorauterError))
        # False if the waiting side has cancelled it: nobody wants the result then.
        if is_over and not self.done.done() and self.done.set_running_or_notify_cancel():
            if self.must_all and isinstance(outcome, LorauterError):
                self.done.set_exception(outcome)
            else:
                self.done.set_result([self.outcomes[place] for place in range(self.count)])


class Engine:
    """Generates and scores with weighted adapter sets; at most ``max_requests`` calls at once."""

    def __init__(
        self,
        network: Network,
        codec: TextCodec,
        residency: Residency,
        scheduler: Scheduler,
        max_requests: int,
        pass_tokens: int,
    ) -> None:
        self._eos_ids = network.eos_ids | ({codec.eos_id} if codec.eos_id is not None else frozenset())
        self._codec = codec
        self._vocabulary = network.vocabulary
        self._residency = residency
        self._scheduler = scheduler
        self._free = max_requests
        self._pass_tokens = pass_tokens

    def is_alive(self) -> bool:
        """Tells whether work is being done."""
        return self._scheduler.is_alive()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request in and out. Raises Exhausted (OVERLOADED)."""
        if self._free <= 0:
            raise overloaded()
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def generate(self, job: Job) -> Completed:
        """Returns the whole generation. Raises LorauterError."""
        return (await self.generate_all([job], is_bulk=False))[0]

    async def generate_all(self, jobs: Sequence[Job], is_bulk: bool = True) -> list[Completed]:
        """Returns all generations in order; the first failure is raised and cancels the rest."""
        sets = _all_of(await self._acquire([job.adapters for job in jobs], must_all=True))
        return _all_of(await self._ended(jobs, sets, is_bulk, must_all=True))

    async def generate_each(self, jobs: Sequence[Job]) -> list[Completed | LorauterError]:
        """Returns each generation, or why it failed, in order. Bulk work. Raises LorauterError."""
        sets = await self._acquire([job.adapters for job in jobs], must_all=False)
        runs = [(job, got) for job, got in zip(jobs, sets, strict=True) if not isinstance(got, LorauterError)]
        ended = iter(await self._ended([job for job, _ in runs], [got for _, got in runs], True, False))
        return [got if isinstance(got, LorauterError) else next(ended) for got in sets]

    async def _ended(
        self, jobs: Sequence[Job], sets: Sequence[AdapterSet], is_bulk: bool, must_all: bool
    ) -> list[Completed | LorauterError]:
        """Runs rows to their end; if the caller goes away, or one fails with ``must_all``, no further."""
        if not jobs:
            return []
        collected = _Collected(len(jobs), must_all)
        rows = [
            self._row(job, adapters, collected.sink(place))
            for place, (job, adapters) in enumerate(zip(jobs, sets, strict=True))
        ]
        # Rows of the same adapters and like lengths side by side: less padding and fewer products.
        order = sorted(range(len(rows)), key=lambda i: (jobs[i].adapters, len(jobs[i].prompt_ids)))
        self._submit(rows, [rows[place] for place in order], is_bulk)
        try:
            return await asyncio.wrap_future(collected.done)
        finally:
            for row in rows:
                row.cancel()

    async def stream(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yields the steps of a generation as they are made. Raises LorauterError."""
        (adapters,) = _all_of(await self._acquire([job.adapters], must_all=True))
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Step | LorauterError] = asyncio.Queue()

        def take(event: Step | LorauterError) -> None:
            # A closed loop has no listeners left; its streams are cancelled.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        row = self._row(job, adapters, take)
        self._submit([row], [row], False)
        try:
            while True:
                event = await events.get()
                if isinstance(event, LorauterError):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            row.cancel()

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """Returns the scores in order; the first failure is raised."""
        sets = _all_of(await self._acquire([item.adapters for item in items], must_all=True))
        return _all_of(await self._score(items, sets))

    async def score_each(self, items: Sequence[ScoreItem]) -> list[Score | LorauterError]:
        """Returns each score, or why there is none, in order. Raises LorauterError if none can be made."""
        sets = await self._acquire([item.adapters for item in items], must_all=False)
        runs = [
            (item, got) for item, got in zip(items, sets, strict=True) if not isinstance(got, LorauterError)
        ]
        scores = iter(await self._score([item for item, _ in runs], [got for _, got in runs]) if runs else [])
        return [got if isinstance(got, LorauterError) else next(scores) for got in sets]

    async def _score(
        self, items: Sequence[ScoreItem], sets: Sequence[AdapterSet]
    ) -> list[Score | LorauterError]:
        done: Future[list[Score | LorauterError]] = Future()

        def take(result: list[Score | LorauterError] | LorauterError) -> None:
            if not done.set_running_or_notify_cancel():
                return
            if isinstance(result, LorauterError):
                done.set_exception(result)
            else:
                done.set_result(result)

        scoring = Scoring(items, sets, self._pass_tokens, self._vocabulary, take)
        try:
            self._scheduler.submit_scoring(scoring)
        except LorauterError:
            self._release(sets)
            raise
        try:
            return await asyncio.wrap_future(done)
        finally:
            scoring.cancel()

    def _row(self, job: Job, adapters: AdapterSet, sink: Callable[[Step | LorauterError], None]) -> Row:
        return Row(job, adapters, self._codec, self._eos_ids, sink)

    def _submit(self, rows: Sequence[Row], ordered: list[Row], is_bulk: bool) -> None:
        try:
            self._scheduler.submit(ordered, is_bulk)
        except LorauterError:
            self._release([row.adapters for row in rows])
            raise

    async def _acquire(self, wanted: Sequence[Pairs], must_all: bool) -> list[AdapterSet | LorauterError]:
        """Loads and pins; if the caller goes away meanwhile, what was pinned is released.

        With ``must_all`` the first failure is raised, else it stands in its adapters' place.
        """
        if not any(wanted):
            return [() for _ in wanted]
        task = asyncio.create_task(asyncio.to_thread(self._acquire_all, wanted, must_all))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._release_result)
            raise

    def _acquire_all(self, wanted: Sequence[Pairs], must_all: bool) -> list[AdapterSet | LorauterError]:
        sets: list[AdapterSet | LorauterError] = []
        failed: dict[Pairs, LorauterError] = {}
        for pairs in wanted:
            try:
                sets.append(failed.get(pairs) or self._residency.acquire(pairs))
            except LorauterError as error:
                if must_all:
                    self._release(sets)
                    raise
                failed[pairs] = error
                sets.append(error)
        return sets

    def _release_result(self, task: asyncio.Task[list[AdapterSet | LorauterError]]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._release(task.result())

    def _release(self, sets: Sequence[AdapterSet | LorauterError]) -> None:
        for adapters in sets:
            if not isinstance(adapters, LorauterError):
                self._residency.release(adapters)


def _all_of(outcomes: Sequence[Value | LorauterError]) -> list[Value]:
    """Returns the outcomes; raises the first that is an error."""
    values = []
    for outcome in outcomes:
        if isinstance(outcome, LorauterError):
            raise outcome
        values.append(outcome)
    return values
