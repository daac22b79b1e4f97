"""One generation under way: what it has said, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorauter.errors import Internal, LorauterError
from lorauter_engine.domain.sampling import Sampler
from lorauter_engine.domain.text import Detokenizer, StopWatch
from lorauter_engine.domain.values import Finish, FinishReason, Job, PromptToken, Step, Token
from lorauter_engine.model.plan import AdapterSet
from lorauter_engine.model.tokenizer import TextCodec

Sink = Callable[[Step | LorauterError], None]
"""Takes each step of a row, then nothing after a step with a finish or an error. Called by the scheduler."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The model's view of the next token after penalties and filters: the chosen one and the best ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """A Job with its adapters in memory. Any thread may cancel it; the rest is the scheduler's."""

    def __init__(
        self, job: Job, adapters: AdapterSet, codec: TextCodec, eos_ids: frozenset[int], sink: Sink
    ) -> None:
        self.job = job
        self.adapters = adapters
        self.sink = sink
        self.is_cancelled = False
        self.is_ended = False
        self.generated: list[int] = []
        self.prefill: tuple[PromptToken, ...] = ()
        needs_scores = not job.sampling.is_plain or job.top_n_tokens
        self.sampler = Sampler(job.sampling, job.prompt_ids) if needs_scores else None
        self._codec = codec
        self._eos_ids = eos_ids
        self._text = Detokenizer(codec, job.prompt_ids)
        self._stops = StopWatch(job.stop)
        self._created = time.monotonic()
        self.started = self._created

    @property
    def length(self) -> int:
        """How many tokens its cache slot holds: all but the newest, which is still to be fed."""
        return len(self.job.prompt_ids) + len(self.generated) - 1

    @property
    def longest(self) -> int:
        """The most tokens that its slot may come to hold."""
        return len(self.job.prompt_ids) + self.job.max_new_tokens

    def cancel(self) -> None:
        """Asks that no more tokens are made; the row leaves the batch at the next step."""
        self.is_cancelled = True

    def choose(self, logits: Tensor, best: int, best_logprob: float) -> Choice:
        """Returns the next token for this row's logits (V,) float32, of which the argmax is known."""
        if self.sampler is None:
            return Choice(best, best_logprob)
        scores = self.sampler.scores(logits.cpu())
        token = self.sampler.choose(scores)
        top: tuple[tuple[int, float], ...] = ()
        if self.job.top_n_tokens:
            values, ids = torch.topk(scores, min(self.job.top_n_tokens, scores.shape[-1]))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Choice(token, float(scores[token]), top)

    def accept(self, choice: Choice) -> Step:
        """Appends a token; the step has a finish if the generation ends with it."""
        self.generated.append(choice.token)
        special = choice.token in self._codec.special_ids
        is_late = self.job.is_quiet and not self.job.stop
        piece = "" if is_late else self._text.add([choice.token])
        token = Token(
            choice.token,
            self._codec.token_text(choice.token) if special and not self.job.is_quiet else piece,
            choice.logprob,
            special,
            tuple(self._token(token, logprob) for token, logprob in choice.top),
        )
        return Step(len(self.generated), token, self._finish(choice.token))

    def remember_prefill(self, logprobs: list[float]) -> None:
        """Notes the log probability of each prompt token but the first."""
        known: list[float | None] = [None, *logprobs]
        self.prefill = tuple(
            PromptToken(token, self._codec.token_text(token), logprob)
            for token, logprob in zip(self.job.prompt_ids, known, strict=True)
        )

    def _token(self, token: int, logprob: float) -> Token:
        return Token(token, self._codec.token_text(token), logprob, token in self._codec.special_ids)

    def _finish(self, token: int) -> Finish | None:
        found = self._stops.find(self._text.text)
        if token in self._eos_ids:
            reason = FinishReason.EOS_TOKEN
        elif found is not None:
            reason = FinishReason.STOP_SEQUENCE
        elif len(self.generated) >= self.job.max_new_tokens:
            reason = FinishReason.LENGTH
        else:
            return None
        if self.job.is_quiet and not self.job.stop:
            self._text.add(self.generated)
        start, end = found or (len(self._text.text),) * 2
        return Finish(
            reason=reason,
            text=self._text.text[:end],
            stop_length=end - start,
            generated_tokens=len(self.generated),
            seed=self.job.sampling.seed if self.job.sampling.do_sample else None,
            prompt_tokens=len(self.job.prompt_ids),
            queue_seconds=self.started - self._created,
            inference_seconds=time.monotonic() - self.started,
            prefill=self.prefill,
        )


def not_finite() -> Internal:
    """Returns the error for a prompt whose logits overflowed or are no numbers."""
    return Internal(
        "OUTPUT_NOT_FINITE", "the model's output is not finite: use smaller adapter weights or others"
    )
