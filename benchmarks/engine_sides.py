"""The sides of the engine's benchmark: the engine over HTTP, and PEFT in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from benchmarks.engine_models import Pool, Weighted
from lorauter.lora.check import read_modules
from lorauter.lora.composites import CompositeStore
from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.servers import peft

TIMEOUT_SECONDS = 600.0
"""Bound on one batch."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a side generated: the texts, in the order of the rows, and how many tokens they have."""

    texts: list[str]
    tokens: int


class EngineSide:
    """An engine at ``url``: all rows in one call."""

    def __init__(self, url: str, digests: Mapping[str, str]) -> None:
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False)
        self._digests = digests

    def generate(self, prompts: Sequence[str], sets: Sequence[Weighted], new_tokens: int) -> Made:
        """Continues each prompt with its own weighted set, greedily."""
        items = [
            {"prompt": prompt, "adapters": [{"id": self._digests[name], "weight": w} for name, w in weighted]}
            for prompt, weighted in zip(prompts, sets, strict=True)
        ]
        body = {"items": items, "parameters": {"max_new_tokens": new_tokens}}
        answer = self._client.post("/generate_batch", json=body)
        answer.raise_for_status()
        made = answer.json()["items"]
        return Made([item["generated_text"] for item in made], sum(item["tokens"] for item in made))

    def close(self) -> None:
        """Releases connections."""
        self._client.close()


class PeftSide:
    """PEFT in float32 with the pool's adapters, and with each weighted set as one composite.

    A composite is PEFT's fastest way to a weighted set: one adapter a layer for all of the set.
    """

    def __init__(self, pool: Pool, sets: Sequence[Weighted]) -> None:
        from peft import PeftModel

        disable_progress_bar()  # type: ignore[no-untyped-call]
        composites = CompositeStore(pool.store)
        self._base = Base("benchmark", "benchmark", read_modules(pool.base))
        self._names = [f"set-{place}" for place in range(len(sets))]
        folders = {
            name: composite(pool, composites, self._base, s)
            for name, s in zip(self._names, sets, strict=True)
        }
        model: Any = AutoModelForCausalLM.from_pretrained(pool.base, dtype=torch.float32)
        first, *rest = {**folders, **pool.folders}.items()
        self._model: Any = PeftModel.from_pretrained(model, first[1], adapter_name=first[0])
        for name, folder in rest:
            self._model.load_adapter(folder, adapter_name=name)
        self._model.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(pool.base, padding_side="left")

    def switching(self, prompts: Sequence[str], new_tokens: int) -> Made:
        """Row by row, each with its weighted set."""
        made = []
        for name, prompt in zip(self._names, prompts, strict=True):
            self._model.set_adapter(name, inference_mode=True)
            made.append(self._generate([prompt], new_tokens, {}))
        return Made([text for each in made for text in each.texts], sum(each.tokens for each in made))

    def mixed(self, prompts: Sequence[str], adapters: Sequence[str], new_tokens: int) -> Made:
        """All rows in one of PEFT's mixed batches, one adapter a row."""
        return self._generate(prompts, new_tokens, {"adapter_names": list(adapters)})

    @torch.inference_mode()
    def logits(self, place: int, prompt: str) -> Tensor:
        """Returns (tokens, vocabulary) of a prompt with the set at ``place``."""
        self._model.set_adapter(self._names[place], inference_mode=True)
        ids = torch.tensor([self._tokenizer(prompt)["input_ids"]])
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], new_tokens: int, names: Mapping[str, Any]) -> Made:
        rows = {"input_ids": [self._tokenizer(prompt)["input_ids"] for prompt in prompts]}
        padded = self._tokenizer.pad(rows, return_tensors="pt")
        end, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        made = self._model.generate(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            **names,
        )[:, padded["input_ids"].shape[1] :]
        counts = [_length(row.tolist(), end) for row in made]
        texts = self._tokenizer.batch_decode(
            [row[:count] for row, count in zip(made, counts, strict=True)], skip_special_tokens=True
        )
        return Made(texts, sum(counts))


def composite(pool: Pool, store: CompositeStore, base: Base, weighted: Weighted) -> Path:
    """Writes a weighted set out as one adapter in float32; returns its folder."""
    members = [(pool.digests[name], weight) for name, weight in weighted]
    return store.ensure(make_recipe(base, members, peft(), "float32")).folder


def _length(tokens: list[int], end: int | None) -> int:
    """Returns how many tokens were generated: up to the first end, which counts."""
    return tokens.index(end) + 1 if end in tokens else len(tokens)
