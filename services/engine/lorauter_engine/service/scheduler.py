"""The thread that owns the model: generations step by step, scoring in between, everything bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from lorauter.errors import Exhausted, Internal, LorauterError, Unavailable
from lorauter.telemetry import get_logger
from lorauter_engine import metrics
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import AdapterSet, Concatenations
from lorauter_engine.service.batch import RunningBatch
from lorauter_engine.service.rows import Row
from lorauter_engine.service.scoring import Scoring

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is taken at once.

    ``max_rows`` rows decode together, of which ``reserved_rows`` are never taken by bulk work; their number
    times the longest is at most ``max_batch_tokens``. Prompts of up to ``prefill_tokens`` padded tokens are
    begun between two steps, in passes of up to ``pass_tokens``, since a CPU's caches hold no more.
    ``max_waiting_rows`` and ``max_waiting_items`` bound what waits.
    """

    max_rows: int
    reserved_rows: int
    max_batch_tokens: int
    prefill_tokens: int
    pass_tokens: int
    max_waiting_rows: int
    max_waiting_items: int


class Scheduler:
    """Runs Rows and Scorings. ``release`` is called for the adapters of whatever has ended."""

    def __init__(
        self, network: Network, known: Concatenations, bounds: Bounds, release: Callable[[AdapterSet], None]
    ) -> None:
        self._network = network
        self._known = known
        self._bounds = bounds
        self._release = release
        self._batch = RunningBatch(network, known, self._row_ended)
        self._changed = threading.Condition()
        self._urgent: deque[Row] = deque()
        self._bulk: deque[Row] = deque()
        self._scorings: deque[Scoring] = deque()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="lorauter-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends what runs and waits with Unavailable (ENGINE_STOPPING), then the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def is_alive(self) -> bool:
        """Tells whether work is being done."""
        return self._thread.is_alive() and not self._is_stopping

    def running(self) -> int:
        """Returns how many rows are in the batch."""
        return len(self._batch.rows)

    def submit(self, rows: list[Row], is_bulk: bool) -> None:
        """Queues rows, all or none. Raises Exhausted (OVERLOADED), Unavailable (ENGINE_STOPPING)."""
        with self._changed:
            self._check_open()
            waiting = len(self._urgent) + len(self._bulk)
            # A call of many rows is taken whenever nothing waits, so that it is taken at all.
            if waiting and waiting + len(rows) > self._bounds.max_waiting_rows:
                raise overloaded()
            (self._bulk if is_bulk else self._urgent).extend(rows)
            self._measure()
            self._changed.notify()

    def submit_scoring(self, scoring: Scoring) -> None:
        """Queues a scoring. Raises Exhausted (OVERLOADED), Unavailable (ENGINE_STOPPING)."""
        with self._changed:
            self._check_open()
            waiting = sum(other.left for other in self._scorings)
            if waiting and waiting + scoring.left > self._bounds.max_waiting_items:
                raise overloaded()
            self._scorings.append(scoring)
            self._measure()
            self._changed.notify()

    def _check_open(self) -> None:
        if self._is_stopping or not self._thread.is_alive():
            raise Unavailable("ENGINE_STOPPING", "the engine is stopping: ask another one")

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._is_stopping or self._has_work()):
                    self._measure()
                    self._changed.wait()
                if self._is_stopping:
                    break
                self._drop_cancelled()
                admitted = self._next_rows()
                scoring = self._scorings[0] if self._scorings else None
                self._measure()
            self._generate(admitted)
            if scoring is not None:
                self._score(scoring)
        self._end_everything()

    def _has_work(self) -> bool:
        return bool(self._batch.rows or self._urgent or self._bulk or self._scorings)

    def _next_rows(self) -> list[Row]:
        """Takes from the queues what fits beside the running rows."""
        taken: list[Row] = []
        for queue, limit in (
            (self._urgent, self._bounds.max_rows),
            (self._bulk, self._bounds.max_rows - self._bounds.reserved_rows),
        ):
            while queue:
                if not self._fits(taken, queue[0], limit):
                    break
                taken.append(queue.popleft())
        return taken

    def _drop_cancelled(self) -> None:
        """Frees what nobody waits for any more, wherever it stands."""
        self._batch.drop_cancelled()
        for queue in (self._urgent, self._bulk):
            gone = [row for row in queue if row.is_cancelled]
            if gone:
                kept = [row for row in queue if not row.is_cancelled]
                queue.clear()
                queue.extend(kept)
            for row in gone:
                self._row_ended(row)
        for scoring in [scoring for scoring in self._scorings if scoring.is_cancelled]:
            self._scorings.remove(scoring)
            self._scoring_ended(scoring)

    def _fits(self, taken: list[Row], row: Row, limit: int) -> bool:
        rows = [*self._batch.rows, *taken]
        if not rows:
            return True
        if len(rows) >= limit:
            return False
        longest = max(row.longest, max(other.longest for other in rows))
        prompt = max([len(row.job.prompt_ids), *(len(other.job.prompt_ids) for other in taken)])
        is_first = not taken
        return (len(rows) + 1) * longest <= self._bounds.max_batch_tokens and (
            is_first or (len(taken) + 1) * prompt <= self._bounds.prefill_tokens
        )

    def _generate(self, admitted: list[Row]) -> None:
        try:
            if self._batch.rows:
                self._batch.step()
            for rows in _passes(admitted, self._bounds.pass_tokens):
                self._batch.admit(rows)
        except Exception as error:
            _log.error("engine.batch.failed", exc_info=error)
            present = set(map(id, self._batch.rows))
            self._batch.rows.extend(row for row in admitted if id(row) not in present and not row.is_ended)
            self._batch.fail_all(failed())

    def _score(self, scoring: Scoring) -> None:
        failure: LorauterError | None = None
        try:
            if not scoring.is_cancelled and scoring.advance(self._network, self._known) and scoring.left:
                return
        except Exception as error:
            _log.error("engine.scoring.failed", exc_info=error)
            failure = failed()
        with self._changed:
            self._scorings.remove(scoring)
        # As with rows: what it held is free before anybody hears of it.
        self._scoring_ended(scoring)
        if failure is not None:
            scoring.done(failure)
        elif not scoring.is_cancelled:
            scoring.finish()

    def _end_everything(self) -> None:
        error = Unavailable("ENGINE_STOPPING", "the engine is stopping: ask another one")
        self._batch.fail_all(error)
        with self._changed:
            for row in (*self._urgent, *self._bulk):
                row.sink(error)
                self._row_ended(row)
            for scoring in self._scorings:
                scoring.done(error)
                self._scoring_ended(scoring)
            self._urgent.clear()
            self._bulk.clear()
            self._scorings.clear()

    def _row_ended(self, row: Row) -> None:
        self._release(row.adapters)

    def _scoring_ended(self, scoring: Scoring) -> None:
        for adapters in scoring.sets:
            self._release(adapters)

    def _measure(self) -> None:
        metrics.ROWS.set(len(self._batch.rows))
        metrics.QUEUE.labels("rows").set(len(self._urgent) + len(self._bulk))
        metrics.QUEUE.labels("items").set(sum(scoring.left for scoring in self._scorings))


def _passes(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Yields rows in order, as many at once as have at most ``tokens`` padded tokens; at least one."""
    taken: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row.job.prompt_ids))
        if taken and (len(taken) + 1) * longest > tokens:
            yield taken
            taken, longest = [], len(row.job.prompt_ids)
        taken.append(row)
    if taken:
        yield taken


def overloaded() -> Exhausted:
    """Returns the error for work that is refused because too much waits already."""
    return Exhausted("OVERLOADED", "Model is overloaded: retry later")


def failed() -> Internal:
    """Returns the error for work that broke; the log has the cause."""
    return Internal("GENERATION_FAILED", "the generation failed; the engine's log has the cause")
