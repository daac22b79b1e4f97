"""Scores targets after prompts, teacher-forced, in large batches across adapter sets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from lorauter.errors import LorauterError
from lorauter_engine import metrics
from lorauter_engine.domain.values import Score, ScoreItem
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import AdapterSet, Concatenations, plan_batch
from lorauter_engine.service.rows import not_finite

_BUCKET = math.log(1.15)
"""Items whose lengths differ by more than 15 % do not share a pass, which bounds the padding."""

LOGITS = 2**26
"""Most logits of one pass: 256 MiB."""

_SHORT = 16
"""Up to this many tokens all lengths share a pass."""

Scored = Score | LorauterError
Done = Callable[[list[Scored] | LorauterError], None]


class Scoring:
    """One call's items, worked off slice by slice between the steps of running generations."""

    def __init__(
        self,
        items: Sequence[ScoreItem],
        sets: Sequence[AdapterSet],
        budget: int,
        vocabulary: int,
        done: Done,
    ) -> None:
        """``sets[i]`` are item i's adapters in memory; ``budget`` bounds the padded tokens of one pass."""
        self.items = items
        self.sets = sets
        self.done = done
        self.is_cancelled = False
        self.left = len(items)
        self._scores: list[Score | None] = [None] * len(items)
        self._slices = slices(items, budget, LOGITS // vocabulary)

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
        """Hands over the scores, with an error for each item whose numbers are not finite."""
        self.done(
            [
                score if math.isfinite(score.logprob) else not_finite()
                for score in self._scores
                if score is not None
            ]
        )


def slices(items: Sequence[ScoreItem], budget: int, max_targets: int) -> Iterator[list[int]]:
    """Yields the places of the items of each pass: like lengths, equal adapters side by side.

    A pass has at most ``budget`` tokens with padding, and ``max_targets`` target tokens, or one item.
    """
    lengths = [len(item.prompt_ids) + len(item.target_ids) - 1 for item in items]
    buckets = [int(math.log(length) / _BUCKET) if length > _SHORT else 0 for length in lengths]

    def order(place: int) -> tuple[int, tuple[str, ...], int]:
        return buckets[place], tuple(digest for digest, _ in items[place].adapters), lengths[place]

    current: list[int] = []
    longest = targets = 0
    for place in sorted(range(len(items)), key=order):
        longest = max(longest, lengths[place])
        targets += len(items[place].target_ids)
        is_full = longest * (len(current) + 1) > budget or targets > max_targets
        if current and (is_full or buckets[place] != buckets[current[0]]):
            yield current
            current, longest, targets = [], lengths[place], len(items[place].target_ids)
        current.append(place)
    if current:
        yield current
