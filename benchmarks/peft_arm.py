"""PEFT as an evaluator of many adapters: one adapter after another, or all in mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from lorauter.metrics import Metric


@dataclass(frozen=True, slots=True)
class Item:
    """One adapter on one example."""

    adapter: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of an item: the score, and the mean log-likelihood of the target's tokens and its end.

    The likelihood is NaN where the answer was generated.
    """

    score: float
    likelihood: float


class PeftArm:
    """A base model in float32 with adapters loaded, in evaluation mode.

    ``is_mixed`` chooses between PEFT's mixed batches (``adapter_names``) and ``set_adapter`` with batches of
    one adapter's items. Items come grouped by adapter, which suits both.
    """

    def __init__(self, base: Path, adapters: Mapping[str, Path], metric: Metric, max_new_tokens: int) -> None:
        from peft import PeftModel

        disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        first, *rest = adapters
        self._model: Any = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
        for name in rest:
            self._model.load_adapter(adapters[name], adapter_name=name)
        self._model.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
        self._metric = metric
        self._max_new_tokens = max_new_tokens

    def score(self, items: Sequence[Item], is_mixed: bool, batch: int) -> list[Judged]:
        """Judges the targets teacher-forced; ``batch`` bounds the rows of one pass."""
        prompts = self._encoded([item.prompt for item in items])
        targets = self._encoded([item.target for item in items], add_special_tokens=False)
        eos: int = self._tokenizer.eos_token_id

        def judge(places: range, names: Mapping[str, Any]) -> list[Judged]:
            chosen = [items[place] for place in places]
            rows = [[*prompts[item.prompt], *targets[item.target], eos] for item in chosen]
            starts = [len(prompts[item.prompt]) for item in chosen]
            return self._teacher_forced(rows, starts, names)

        return self._run(items, is_mixed, batch, judge)

    def generate(self, items: Sequence[Item], is_mixed: bool, batch: int) -> list[Judged]:
        """Generates greedily until the end token and scores the texts; ``batch`` bounds the rows at once."""
        prompts = self._encoded([item.prompt for item in items])

        def judge(places: range, names: Mapping[str, Any]) -> list[Judged]:
            rows = {"input_ids": [prompts[items[place].prompt] for place in places]}
            padded = self._tokenizer.pad(rows, return_tensors="pt")
            made = self._model.generate(
                **padded, max_new_tokens=self._max_new_tokens, do_sample=False, use_cache=True, **names
            )
            answers = made[:, padded["input_ids"].shape[1] :]
            texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
            targets = (items[place].target for place in places)
            return [
                Judged(self._metric.score(text, target), float("nan"))
                for text, target in zip(texts, targets, strict=True)
            ]

        return self._run(items, is_mixed, batch, judge)

    @torch.inference_mode()
    def _run(
        self,
        items: Sequence[Item],
        is_mixed: bool,
        batch: int,
        judge: Callable[[range, Mapping[str, Any]], list[Judged]],
    ) -> list[Judged]:
        judged: list[Judged] = []
        if is_mixed:
            for places in _batches(0, len(items), batch):
                judged += judge(places, {"adapter_names": [items[place].adapter for place in places]})
            return judged
        start = 0
        while start < len(items):
            adapter = items[start].adapter
            end = next((i for i in range(start, len(items)) if items[i].adapter != adapter), len(items))
            self._model.set_adapter(adapter, inference_mode=True)
            for places in _batches(start, end, batch):
                judged += judge(places, {})
            start = end
        return judged

    def _encoded(self, texts: Sequence[str], **options: bool) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        ids: list[list[int]] = self._tokenizer(distinct, **options)["input_ids"]
        return dict(zip(distinct, ids, strict=True))

    def _teacher_forced(
        self, rows: Sequence[list[int]], starts: Sequence[int], names: Mapping[str, Any]
    ) -> list[Judged]:
        # Padding on the right is invisible to a causal model: no mask, which is its fastest attention.
        ids = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)
        first = min(starts) - 1
        wanted = torch.arange(first, ids.shape[1] - 1)
        logits: Tensor = self._model(input_ids=ids, use_cache=False, logits_to_keep=wanted, **names).logits
        following = ids[:, first + 1 :]
        places = torch.arange(first + 1, ids.shape[1])
        ends = torch.tensor(list(map(len, rows)))
        is_target = (places >= torch.tensor(starts)[:, None]) & (places < ends[:, None])
        logprobs = logits.gather(-1, following[:, :, None])[:, :, 0] - logits.logsumexp(-1)
        means = (logprobs * is_target).sum(-1) / is_target.sum(-1)
        right = ((logits.argmax(-1) == following) | ~is_target).all(-1)
        return [Judged(*pair) for pair in zip(right.float().tolist(), means.tolist(), strict=True)]


def _batches(start: int, end: int, size: int) -> Iterator[range]:
    for first in range(start, end, size):
        yield range(first, min(end, first + size))
