"""The running batch: rows are admitted and leave at every step, and never see one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorauter.errors import LorauterError
from lorauter_engine import metrics
from lorauter_engine.domain.values import Step
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import BatchPlan, Concatenations, plan_batch
from lorauter_engine.model.stacks import Stacks
from lorauter_engine.service.rows import Row, not_finite

IDLE_KEEP_TOKENS = 16_384
"""A cache of more slots times tokens than this is given back when the batch is empty."""


class RunningBatch:
    """Rows that decode together; row i uses slot i of the network's cache."""

    def __init__(self, network: Network, known: Concatenations, on_end: Callable[[Row], None]) -> None:
        self.rows: list[Row] = []
        self._network = network
        self._known = known
        self._on_end = on_end
        self._stacks = Stacks(known.limit_bytes)
        self._plan: BatchPlan | None = None
        self._is_planned = False
        self._steps_to_stack: int | None = None

    def admit(self, rows: Sequence[Row]) -> None:
        """Runs the prompts of new rows and makes their first tokens."""
        started = time.monotonic()
        for row in rows:
            row.started = started
        first = len(self.rows)
        self.rows.extend(rows)
        self._is_planned = False
        prompts = [row.job.prompt_ids for row in rows]
        wanted = [
            range(0 if row.job.wants_prefill else len(row.job.prompt_ids) - 1, len(row.job.prompt_ids))
            for row in rows
        ]
        sets = [row.adapters for row in rows]
        plan = plan_batch(sets, max(map(len, prompts)), self._known)
        has_one_each = all(len(positions) == 1 for positions in wanted)
        if plan is not None and has_one_each and self._stacks.worth_after(plan, sets, first) is not None:
            plan = self._stacks.stacked(plan, sets, first)
        logits = self._network.prefill(prompts, plan, wanted, first)
        ends = torch.tensor([len(positions) for positions in wanted]).cumsum(0) - 1
        for row, positions, end in zip(rows, wanted, ends.tolist(), strict=True):
            if row.job.wants_prefill:
                row.remember_prefill(_prompt_logprobs(row, logits[end + 1 - len(positions) : end]))
        metrics.TOKENS.labels("prompt").inc(sum(map(len, prompts)))
        metrics.BATCH_ROWS.labels("prefill").observe(len(rows))
        self._extend(first, logits[ends.to(logits.device)])
        metrics.STEP_SECONDS.labels("prefill").observe(time.monotonic() - started)

    def step(self) -> None:
        """Makes one more token for every row."""
        started = time.monotonic()
        self._planned()
        tokens = [row.generated[-1] for row in self.rows]
        logits = self._network.decode(tokens, [row.length for row in self.rows], self._plan)
        metrics.BATCH_ROWS.labels("decode").observe(len(self.rows))
        self._extend(0, logits)
        metrics.STEP_SECONDS.labels("decode").observe(time.monotonic() - started)

    def _planned(self) -> None:
        """Makes the plan of the rows that are there; stacks it once it has served so long that this pays."""
        sets = [row.adapters for row in self.rows]
        if not self._is_planned:
            self._plan = plan_batch(sets, 1, self._known)
            self._is_planned = True
            self._steps_to_stack = self._stacks.worth_after(self._plan, sets) if self._plan else None
        if self._plan is None or self._steps_to_stack is None:
            return
        self._steps_to_stack -= 1
        if self._steps_to_stack == 0:
            self._plan = self._stacks.stacked(self._plan, sets)
            self._steps_to_stack = None

    def drop_cancelled(self) -> None:
        """Frees the slots of rows that nobody waits for any more."""
        self._leave([index for index, row in enumerate(self.rows) if row.is_cancelled])

    def fail_all(self, error: LorauterError) -> None:
        """Ends every row with an error and forgets the cache, whatever state it is in."""
        rows, self.rows = self.rows, []
        self._is_planned = False
        self._network.cache.drop()
        for row in rows:
            if not (row.is_ended or row.is_cancelled):
                row.is_ended = True
                row.sink(error)
            self._on_end(row)

    def _extend(self, first: int, logits: Tensor) -> None:
        """Chooses tokens for rows from ``first`` on, whose logits these are; frees those that end."""
        rows = self.rows[first:]
        best = logits.argmax(-1)
        logprobs = logits.gather(-1, best[:, None])[:, 0] - logits.logsumexp(-1)
        last: dict[int, Step | LorauterError] = {}
        gone: list[int] = []
        choices = zip(rows, best.tolist(), logprobs.tolist(), strict=True)
        for offset, (row, token, logprob) in enumerate(choices):
            if row.is_cancelled:
                gone.append(first + offset)
            # A NaN or an infinity anywhere in the row shows in its log-sum.
            elif logprob != logprob:
                last[first + offset] = not_finite()
            else:
                step = row.accept(row.choose(logits[offset], token, logprob))
                if step.finish is None:
                    row.sink(step)
                else:
                    last[first + offset] = step
        metrics.TOKENS.labels("generated").inc(len(rows))
        ending = {index: self.rows[index] for index in last}
        self._leave(sorted([*last, *gone]))
        # Whoever hears the end may come back at once: what the row held is free by then.
        for index, row in ending.items():
            row.is_ended = True
            row.sink(last[index])

    def _leave(self, indices: Sequence[int]) -> None:
        """Ends the rows at ``indices``, in order; the last ones that stay take their slots."""
        if not indices:
            return
        cache, leaving = self._network.cache, set(indices)
        count, left = len(self.rows), len(self.rows) - len(leaving)
        longest = max(row.longest for row in self.rows)
        sources = [index for index in range(left, count) if index not in leaving]
        targets = [index for index in indices if index < left]
        if sources:
            cache.move(sources, targets, longest)
        cache.clear(slice(left, count), longest)
        gone = [self.rows[index] for index in indices]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[left:]
        self._is_planned = False
        if not self.rows and cache.reserved > IDLE_KEEP_TOKENS:
            cache.drop()
        for row in gone:
            self._on_end(row)


def _prompt_logprobs(row: Row, logits: Tensor) -> list[float]:
    following = torch.tensor(row.job.prompt_ids[1:], device=logits.device)
    scores = torch.log_softmax(logits, dim=-1)
    values: list[float] = scores.gather(-1, following[:, None])[:, 0].tolist()
    return values
