"""What a generation is asked for and what it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"  # noqa: S105 - a word, not a secret
    STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. With ``do_sample`` false and no penalties it is the argmax.

    ``frequency_penalty`` and ``presence_penalty`` count generated tokens; ``repetition_penalty`` divides
    positive and multiplies negative logits of all tokens seen, prompt included.
    """

    do_sample: bool = False
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Tells whether the choice is the argmax of the model's logits."""
        penalised = self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        return not self.do_sample and not penalised


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to continue.

    ``adapters`` are (digest, weight) pairs without duplicates, sorted. ``max_new_tokens`` fits the model's
    context. ``is_quiet`` leaves out texts of single tokens, which only streams and details need.
    """

    prompt_ids: Sequence[int]
    adapters: tuple[tuple[str, float], ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    top_n_tokens: int = 0
    wants_prefill: bool = False
    is_quiet: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token: ``text`` is what it adds to the answer, never half a character."""

    id: int
    text: str
    logprob: float
    special: bool
    top: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of the prompt; the first has no logprob."""

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Finish:
    """How a generation ended.

    ``text`` ends with the stop sequence if one was met; ``stop_length`` is that sequence's length in
    characters. Times are in seconds.
    """

    reason: FinishReason
    text: str
    stop_length: int
    generated_tokens: int
    seed: int | None
    prompt_tokens: int
    queue_seconds: float
    inference_seconds: float
    prefill: tuple[PromptToken, ...] = ()

    @property
    def clean_text(self) -> str:
        """The text without the stop sequence."""
        return self.text[: len(self.text) - self.stop_length]


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token and, with the last one, the finish."""

    index: int
    token: Token
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A target to be scored after a prompt; ``target_ids`` end with EOS."""

    prompt_ids: Sequence[int]
    target_ids: Sequence[int]
    adapters: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Log probability (natural, summed over ``tokens`` target tokens, EOS included).

    ``exact`` tells whether every target token was the most probable one.
    """

    logprob: float
    tokens: int
    exact: bool
