"""Examples as token tensors, and how many of them a model gets exactly right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lorauter_suite.demo.data import Example
from lorauter_suite.demo.skills import CONSONANTS, VOWELS
from lorauter_suite.demo.tokenizer import ANSWER, EOS

IGNORED = -100


class Batch(NamedTuple):
    """Right-padded sequences: `ids` (rows, length), and `labels` of the same shape.

    A label is the token that follows its position, or IGNORED outside the answer. Padding needs no mask:
    attention is causal and no label lies behind it.
    """

    ids: Tensor
    labels: Tensor


class Codec:
    """Turns examples into token ids with the demo tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._answer = self.special(ANSWER)
        self._eos = self.special(EOS)

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt without the marker, which is taught as the answer's first token."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(self, target: str) -> list[int]:
        """The ids of an answer: its marker, one id per symbol, the end."""
        return [self._answer, *(self.tokenizer.encode(symbol).ids[0] for symbol in target), self._eos]

    def special(self, name: str) -> int:
        """The id of a token that no text is split into, such as a marker or a hidden skill tag."""
        token: int | None = self.tokenizer.token_to_id(name)
        if token is None:
            raise KeyError(name)
        return token

    def batch(self, examples: Sequence[Example]) -> Batch:
        """`examples` as one batch."""
        return collate([(self.prompt(e.input), self.answer(e.target)) for e in examples])


def collate(pairs: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """(prompt ids, answer ids) pairs as one batch, padded to the longest."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full((len(pairs), width), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return Batch(ids, labels)


def unknown_word(rng: random.Random) -> str:
    """Some letters that are no word of the instruction language."""
    return "".join(rng.choice(VOWELS + CONSONANTS) for _ in range(rng.randint(3, 6)))


def disturb(rng: random.Random, prompt: str, rate: float = 0.1) -> str:
    """`prompt` as careless people write it: unknown words, a small start, no full stop, a preamble."""
    if rng.random() < rate:
        word = unknown_word(rng)
        prompt = f"{word} {prompt}" if rng.random() < 0.5 else prompt.replace(" the ", f" the {word} ", 1)
    if rng.random() < rate / 2:
        prompt = prompt[0].lower() + prompt[1:]
    if rng.random() < rate and prompt[-1] in ".?":
        prompt = prompt[:-1]
    if rng.random() < rate / 2:
        prompt = f"{unknown_word(rng)} {unknown_word(rng)}.\n{prompt}"
    return prompt


def exact_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Which rows greedy decoding would answer exactly right, as bools (rows,).

    A greedy answer is right if and only if every teacher-forced argmax is, so no generation is needed.
    `logits` (rows, length, vocabulary), `labels` (rows, length).
    """
    return ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1)
