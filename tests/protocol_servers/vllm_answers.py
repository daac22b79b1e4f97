"""vLLM's bodies: OpenAI's, with prompt_logprobs and stop_reason."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.protocol_servers.models import Finish, ModelFailed, Prefill, Prompt, Token
from tests.protocol_servers.server import Words, held_back, without_stop

_SAME = ("top_p", "top_k", "seed", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True)
class Asked:
    """A generation as both routes have it."""

    prompt: Prompt
    body: dict[str, Any]
    limit: int | None
    prefix: str

    @property
    def stops(self) -> list[str]:
        """The stop texts."""
        stop = self.body.get("stop") or []
        return [stop] if isinstance(stop, str) else list(stop)

    @property
    def cut_at(self) -> list[str]:
        """The stop texts that are left out of the answer."""
        return [] if self.body.get("include_stop_str_in_output") else self.stops

    def parameters(self) -> dict[str, Any]:
        """Returns TGI's parameters that mean the same."""
        body = self.body
        temperature = body.get("temperature")
        found = {
            "do_sample": temperature != 0,
            "temperature": temperature or None,
            "max_new_tokens": self.limit,
            "stop": self.stops,
            "truncate": body.get("truncate_prompt_tokens"),
            **{name: body.get(name) for name in _SAME},
        }
        return {name: value for name, value in found.items() if value is not None}

    def around(self, kind: str, model: str) -> Callable[..., dict[str, Any]]:
        """Returns what puts choices into an answer or into the chunks of one."""
        answer_id, created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

        def make(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
            around = {"id": answer_id, "object": kind, "created": created, "model": model}
            return {**around, "choices": choices, **more}

        return make


def completion_answer(
    asked: Asked, model: str, tokens: list[Token], finish: Finish, prefill: Prefill
) -> dict[str, Any]:
    """Returns the body of a whole completion."""
    text = without_stop(finish.text, asked.cut_at)
    told = [(token.text, token.logprob) for token in tokens if not token.special]
    if asked.body.get("echo"):
        text = f"{asked.prompt}{text}"
        told = [(each["text"], each["logprob"]) for each in prefill] + told
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "logprobs": _logprobs(told) if asked.body.get("logprobs") is not None else None,
        **_ended(asked, finish),
        "prompt_logprobs": _prompt_logprobs(asked, prefill),
    }
    return asked.around("text_completion", model)([choice], usage=usage(finish))


def chat_answer(
    asked: Asked, model: str, tokens: list[Token], finish: Finish, prefill: Prefill
) -> dict[str, Any]:
    """Returns the body of a whole chat completion."""
    message = {
        "role": "assistant",
        "content": without_stop(finish.text, asked.cut_at),
        "refusal": None,
        "tool_calls": [],
        "reasoning": None,
    }
    content = [_chat_logprob(token) for token in tokens]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": content} if asked.body.get("logprobs") else None,
        **_ended(asked, finish),
    }
    more = {"usage": usage(finish), "prompt_logprobs": _prompt_logprobs(asked, prefill)}
    return asked.around("chat.completion", model)([choice], **more)


def completion_words(asked: Asked, model: str) -> Words:
    """Returns the words of a completion's stream."""
    around, trimmed = asked.around("text_completion", model), _trimmer(asked.cut_at)

    def render(token: Token) -> list[dict[str, Any]]:
        text, finish = trimmed(token), token.finish
        if not text and not finish:
            return []
        ended = _ended(asked, finish) if finish else {"finish_reason": None, "stop_reason": None}
        events = [around([{"index": 0, "text": text, "logprobs": None, **ended}])]
        return events + ([around([], usage=usage(finish))] if finish and _has_usage(asked) else [])

    return Words(render, failed)


def chat_words(asked: Asked, model: str) -> Words:
    """Returns the words of a chat's stream."""
    around, trimmed = asked.around("chat.completion.chunk", model), _trimmer(asked.cut_at)
    is_begun = False

    def render(token: Token) -> list[dict[str, Any]]:
        nonlocal is_begun
        events = []
        if not is_begun:
            is_begun = True
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            events.append(around([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]))
        text, finish = trimmed(token), token.finish
        if text or finish:
            ended = _ended(asked, finish) if finish else {"finish_reason": None}
            events.append(around([{"index": 0, "delta": {"content": text}, "logprobs": None, **ended}]))
        if finish and _has_usage(asked):
            events.append(around([], usage=usage(finish)))
        return events

    return Words(render, failed)


def failed(error: ModelFailed) -> dict[str, Any]:
    """Returns the event of a stream that fails."""
    return error_body(500, str(error), "InternalServerError")


def error_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """Returns vLLM's error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def usage(finish: Finish) -> dict[str, int]:
    """Returns the token counts."""
    prompt, answer = finish.prompt_tokens, finish.generated_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}


def _ended(asked: Asked, finish: Finish) -> dict[str, Any]:
    reason = "length" if finish.reason == "length" else "stop"
    stopped = finish.reason == "stop_sequence"
    stop = next((stop for stop in asked.stops if stop and stop in finish.text), None) if stopped else None
    return {"finish_reason": reason, "stop_reason": stop}


def _has_usage(asked: Asked) -> bool:
    return bool((asked.body.get("stream_options") or {}).get("include_usage"))


def _trimmer(stops: list[str]) -> Callable[[Token], str]:
    said, sent = "", 0

    def trimmed(token: Token) -> str:
        nonlocal said, sent
        said += "" if token.special else token.text
        if token.finish:
            piece = without_stop(token.finish.text, stops)[sent:]
        else:
            piece = said[sent : len(said) - held_back(said, stops)]
        sent += len(piece)
        return piece

    return trimmed


def _logprobs(told: list[tuple[str, float | None]]) -> dict[str, Any]:
    offsets, at = [], 0
    for text, _ in told:
        offsets.append(at)
        at += len(text)
    return {
        "text_offset": offsets,
        "token_logprobs": [logprob for _, logprob in told],
        "tokens": [text for text, _ in told],
        "top_logprobs": [None if logprob is None else {text: logprob} for text, logprob in told],
    }


def _chat_logprob(token: Token) -> dict[str, Any]:
    spelled = list(token.text.encode())
    return {"token": token.text, "logprob": token.logprob, "bytes": spelled, "top_logprobs": []}


def _prompt_logprobs(asked: Asked, prefill: Prefill) -> list[dict[str, Any] | None] | None:
    if asked.body.get("prompt_logprobs") is None:
        return None
    return [
        None
        if each["logprob"] is None
        else {str(each["id"]): {"logprob": each["logprob"], "rank": 1, "decoded_token": each["text"]}}
        for each in prefill
    ]
