"""Scores targets after prompts, teacher-forced, in large batches across adapter sets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from lorauter.errors import Internal, LorauterError
from lorauter_engine import metrics
from lorauter_engine.domain.values import Score, ScoreItem
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import AdapterSet, Concatenations, plan_batch

_BUCKET = math.log(1.15)
"""Items whose lengths differ by more than 15 % do not share a pass, which bounds the padding."""

Done = Callable[[list[Score] | LorauterError], None]


class Scoring:
    """One call's items, worked off slice by slice between the steps of running generations."""

    def __init__(
        self, items: Sequence[ScoreItem], sets: Sequence[AdapterSet], budget: int, done: Done
    ) -> None:
        """``sets[i]`` are item i's adapters in memory; ``budget`` bounds the padded tokens of one pass."""
        self.items = items
        self.sets = sets
        self.done = done
        self.is_cancelled = False
        self.left = len(items)
        self._scores: list[Score | None] = [None] * len(items)
        self._slices = _slices(items, budget)

    def cancel(self) -> None:
        """Asks that the rest is left undone."""
        self.is_cancelled = True

    def advance(self, network: Network, known: Concatenations) -> bool:
        """Scores one slice; returns whether there was one."""
        places = next(self._slices, None)
        if places is None:
            return False
        started = time.monotonic()
        items = [self.items[place] for place in places]
        texts = [[*item.prompt_ids, *item.target_ids[:-1]] for item in items]
        wanted = [range(len(item.prompt_ids) - 1, len(text)) for item, text in zip(items, texts, strict=True)]
        plan = plan_batch([self.sets[place] for place in places], max(map(len, texts)), known)
        logits = network.prefill(texts, plan, wanted, None)
        targets = torch.tensor([token for item in items for token in item.target_ids], device=logits.device)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
        right = logits.argmax(-1) == targets
        start = 0
        sums, hits = logprobs.double().tolist(), right.tolist()
        for place, item in zip(places, items, strict=True):
            end = start + len(item.target_ids)
            self._scores[place] = Score(sum(sums[start:end]), end - start, all(hits[start:end]))
            start = end
        self.left -= len(places)
        metrics.TOKENS.labels("scored").inc(sum(map(len, texts)))
        metrics.BATCH_ROWS.labels("score").observe(len(places))
        metrics.STEP_SECONDS.labels("score").observe(time.monotonic() - started)
        return True

    def finish(self) -> None:
        """Hands the scores over."""
        scores = [score for score in self._scores if score is not None]
        if all(math.isfinite(score.logprob) for score in scores):
            self.done(scores)
        else:
            message = "the model's output is not finite: use smaller adapter weights or others"
            self.done(Internal("GENERATION_FAILED", message))


def _slices(items: Sequence[ScoreItem], budget: int) -> Iterator[list[int]]:
    lengths = [len(item.prompt_ids) + len(item.target_ids) - 1 for item in items]

    def order(place: int) -> tuple[int, tuple[str, ...], int]:
        bucket = int(math.log(lengths[place]) / _BUCKET) if lengths[place] > 16 else 0
        return bucket, tuple(digest for digest, _ in items[place].adapters), lengths[place]

    current: list[int] = []
    bucket, longest = 0, 0
    for place in sorted(range(len(items)), key=order):
        longer = max(longest, lengths[place])
        if current and (longer * (len(current) + 1) > budget or order(place)[0] != bucket):
            yield current
            current, longer = [], lengths[place]
        current.append(place)
        bucket, longest = order(place)[0], longer
    if current:
        yield current
