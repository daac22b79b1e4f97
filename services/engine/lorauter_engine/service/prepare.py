"""Checks a request against the model and makes a Job of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorauter.errors import UnprocessableRequest
from lorauter_engine.domain.values import Job, Sampling, ScoreItem
from lorauter_engine.model.tokenizer import TextCodec
from lorauter_engine.service.residency import normalise

MAX_STOP_SEQUENCES = 4
"""TGI's default."""

MAX_TOP_TOKENS = 20

Messages = Sequence[Mapping[str, Any]]
Adapters = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Wish:
    """How a caller wants a prompt continued. None means that the caller left it out.

    ``temperature``, ``top_k``, ``top_p`` and ``typical_p`` imply sampling where they change anything.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: Sequence[str] = ()
    truncate: int | None = None
    top_n_tokens: int = 0
    wants_prefill: bool = False
    is_quiet: bool = False
    adapters: Adapters = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Preparation:
    """Turns texts into jobs within ``context`` tokens; raises UnprocessableRequest where they do not fit."""

    codec: TextCodec
    context: int
    max_adapters: int

    def job(self, prompt: str | Messages, wish: Wish) -> Job:
        """Returns the job for a raw prompt or chat messages."""
        ids = self.prompt_ids(prompt)
        if wish.truncate:
            ids = ids[-wish.truncate :]
        return Job(
            prompt_ids=ids,
            adapters=normalise(wish.adapters, self.max_adapters),
            max_new_tokens=self._room(len(ids), wish.max_new_tokens),
            sampling=_sampling(wish),
            stop=_stops(wish.stop),
            top_n_tokens=min(wish.top_n_tokens, MAX_TOP_TOKENS),
            wants_prefill=wish.wants_prefill,
            is_quiet=wish.is_quiet,
        )

    def score_item(self, prompt: str | Messages, target: str, adapters: Adapters) -> ScoreItem:
        """Returns the item for a target, which EOS follows."""
        rendered, add_special = self._rendered(prompt)
        prompt_ids = self._encoded(rendered, add_special)
        target_ids = self.codec.continuation(rendered, prompt_ids, target, add_special) if target else []
        if self.codec.eos_id is None:
            raise UnprocessableRequest("NO_EOS", "the model has no end-of-sequence token to score with")
        total = len(prompt_ids) + len(target_ids)
        if total > self.context:
            raise UnprocessableRequest(
                "PROMPT_TOO_LONG", f"prompt and target have {total} tokens; at most {self.context} fit"
            )
        return ScoreItem(prompt_ids, [*target_ids, self.codec.eos_id], normalise(adapters, self.max_adapters))

    def prompt_ids(self, prompt: str | Messages) -> list[int]:
        """Returns the tokens of a prompt."""
        return self._encoded(*self._rendered(prompt))

    def _rendered(self, prompt: str | Messages) -> tuple[str, bool]:
        # A chat template writes its own special tokens.
        return (prompt, True) if isinstance(prompt, str) else (self.codec.render(prompt), False)

    def _encoded(self, text: str, add_special: bool) -> list[int]:
        if not text:
            raise UnprocessableRequest("EMPTY_PROMPT", "`inputs` cannot be empty", field="inputs")
        ids = self.codec.encode(text, add_special)
        if not ids:
            raise UnprocessableRequest("EMPTY_PROMPT", "`inputs` has no tokens", field="inputs")
        return ids

    def _room(self, prompt_tokens: int, wanted: int | None) -> int:
        if prompt_tokens >= self.context:
            raise UnprocessableRequest(
                "PROMPT_TOO_LONG",
                f"`inputs` must have less than {self.context} tokens. Given: {prompt_tokens}",
                field="inputs",
            )
        if wanted is None:
            return self.context - prompt_tokens
        if prompt_tokens + wanted > self.context:
            raise UnprocessableRequest(
                "PROMPT_TOO_LONG",
                f"`inputs` tokens + `max_new_tokens` must be <= {self.context}. "
                f"Given: {prompt_tokens} `inputs` tokens and {wanted} `max_new_tokens`",
                field="max_new_tokens",
            )
        return wanted


def _sampling(wish: Wish) -> Sampling:
    temperature, top_p = wish.temperature or 1.0, wish.top_p or 1.0
    top_k, typical_p = wish.top_k or 0, wish.typical_p or 1.0
    filters = temperature != 1.0 or top_k > 0 or top_p < 1.0 or typical_p < 1.0
    do_sample = wish.do_sample or filters
    seed = wish.seed if wish.seed is not None else secrets.randbits(63)
    return Sampling(
        do_sample=do_sample,
        seed=seed if do_sample else 0,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        typical_p=typical_p,
        repetition_penalty=wish.repetition_penalty or 1.0,
        frequency_penalty=wish.frequency_penalty or 0.0,
        presence_penalty=wish.presence_penalty or 0.0,
    )


def _stops(stop: Sequence[str]) -> tuple[str, ...]:
    if len(stop) > MAX_STOP_SEQUENCES:
        raise UnprocessableRequest(
            "TOO_MANY_STOPS",
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(stop)}",
            field="stop",
        )
    return tuple(sequence for sequence in stop if sequence)
