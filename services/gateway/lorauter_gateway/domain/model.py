"""Requests and answers in one form, whichever dialect they came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lorauter.access import Caller
from lorauter.router.v1.router_pb2 import RouteRequest


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation; ``role`` is system, user, assistant or tool."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Raw text, or a conversation that the backend renders with its chat template."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. None leaves the choice to the backend; greedy unless ``do_sample``.

    ``extra`` holds TGI parameters that the gateway passes on without reading them.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


MAX_STOPS = 4
"""Stop texts of a request; TGI takes no more by default."""


def sampling(
    *,
    max_new_tokens: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float | None = None,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    extra: Mapping[str, object] | None = None,
) -> Sampling:
    """Returns how to sample: greedy unless ``do_sample`` or a parameter of sampling asks otherwise.

    Adapters were measured greedily, so an answer comes from what was measured unless the caller says
    so. A ``top_p`` of 1 means none. Where ``do_sample`` is false, parameters of sampling are dropped.
    """
    top_p = None if top_p == 1 else top_p
    is_sampled = temperature is not None or top_p is not None or top_k is not None
    if do_sample is not None:
        is_sampled = do_sample
    return Sampling(
        max_new_tokens,
        is_sampled,
        temperature if is_sampled else None,
        top_p if is_sampled else None,
        top_k if is_sampled else None,
        repetition_penalty,
        frequency_penalty,
        seed,
        stop,
        extra or {},
    )


class TargetKind(StrEnum):
    """What a request asks to be answered by."""

    AUTO = "auto"
    PIN = "pin"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Target:
    """What answers. ``adapter`` is set for PIN; an empty ``pool`` means the only one."""

    kind: TargetKind = TargetKind.AUTO
    pool: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """One request for an answer. ``routing`` restricts the router where the target is AUTO."""

    prompt: Prompt
    target: Target
    sampling: Sampling
    timeout_seconds: float
    caller: Caller
    routing: RouteRequest = field(default_factory=RouteRequest)


class FinishReason(StrEnum):
    """Why an answer ended, in TGI's words."""

    EOS_TOKEN = "eos_token"  # noqa: S105
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``details`` is what TGI calls so, where the backend gave it."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; the last one carries the whole as ``finish``.

    ``text`` leaves out special tokens. ``token`` and ``top_tokens`` are TGI's, where the backend
    gave them.
    """

    text: str
    token: Mapping[str, object] | None = None
    top_tokens: object = None
    finish: Answer | None = None
