"""Chooses next tokens. A row's choice depends on its own logits and seed only, never on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorauter_engine.domain.values import Sampling


class Sampler:
    """The choice of one row: its parameters, its random numbers, the tokens that it has seen."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt = torch.tensor(sorted(set(prompt_ids)), dtype=torch.long)
        self._counts: dict[int, int] = {}
        self._generator = torch.Generator()
        # torch takes 64 bits as a signed number.
        self._generator.manual_seed(sampling.seed & 0x7FFF_FFFF_FFFF_FFFF)

    def scores(self, logits: Tensor) -> Tensor:
        """Returns log probabilities (V,) after penalties and filters, for float32 logits on the CPU."""
        scores = self._penalised(logits.clone())
        if self._sampling.do_sample:
            scores = self._filtered(scores / self._sampling.temperature)
        return torch.log_softmax(scores, dim=-1)

    def choose(self, scores: Tensor) -> int:
        """Returns the next token, given what scores() returned, and remembers it."""
        if self._sampling.do_sample:
            # Exponential race: the same as a multinomial draw, with one random number per token.
            noise = torch.empty_like(scores).exponential_(generator=self._generator)
            token = int(torch.argmax(scores.exp() / noise.clamp_min(1e-30)))
        else:
            token = int(torch.argmax(scores))
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalised(self, scores: Tensor) -> Tensor:
        s = self._sampling
        if s.repetition_penalty != 1.0:
            generated = torch.tensor(list(self._counts), dtype=torch.long)
            seen = torch.unique(torch.cat([self._prompt, generated]))
            values = scores[seen]
            scores[seen] = torch.where(
                values < 0, values * s.repetition_penalty, values / s.repetition_penalty
            )
        if self._counts and (s.frequency_penalty or s.presence_penalty):
            ids = torch.tensor(list(self._counts), dtype=torch.long)
            counts = torch.tensor(list(self._counts.values()), dtype=scores.dtype)
            scores[ids] -= s.frequency_penalty * counts + s.presence_penalty
        return scores

    def _filtered(self, scores: Tensor) -> Tensor:
        s = self._sampling
        if 0 < s.top_k < scores.shape[-1]:
            scores[scores < torch.topk(scores, s.top_k).values[-1]] = -torch.inf
        if s.top_p < 1.0:
            ordered, order = scores.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            scores[order[before >= s.top_p]] = -torch.inf
        if s.typical_p < 1.0:
            logprobs = torch.log_softmax(scores, dim=-1)
            probabilities = logprobs.exp()
            entropy = -(probabilities * logprobs).nan_to_num(0.0).sum()
            order = (-logprobs - entropy).abs().argsort()
            ordered = probabilities[order]
            scores[order[ordered.cumsum(-1) - ordered >= s.typical_p]] = -torch.inf
        return scores
