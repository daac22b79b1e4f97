"""A backend that takes no time of its own: it speaks the engine's and vLLM's bytes and generates nothing.

Run by benchmarks.gateway as ``python -m benchmarks.gateway_stub``. ``POST /stub {"slots": 8, "seconds": 0.1,
"token_seconds": 0.5}`` sets how many requests it takes at a time, 0 for any number, how long whole answers
take, and the pause between a stream's tokens, each of which is ``tok`` and the microsecond of the machine's
monotonic clock at which it was sent.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import uvloop

MODEL = "base"
"""The base model that it says it serves."""

TOKENS = 16
"""Tokens of an answer for which none are asked."""

_PROMPT_TOKENS = 12
_FULL = {"error": "Model is overloaded", "error_type": "overloaded"}
_JSON = b"content-type: application/json\r\nx-prompt-tokens: 12\r\n"
_EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_USAGE = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": 0, "total_tokens": 0}

Body = Mapping[str, Any]
Event = Callable[[str, int, int], list[bytes]]
"""Makes the events of a token from its text, its number from 1 and how many there are."""


class Stub:
    """What all connections share: the slots, the pace, the names that were loaded."""

    def __init__(self, slots: int = 0, seconds: float = 0.0) -> None:
        self.slots = slots
        self.seconds = seconds
        self.token_seconds = 0.0
        self.busy = 0
        self.loaded: dict[str, str] = {}
        self.routes: dict[bytes, Callable[[Connection, Body], None]] = {
            b"POST /generate": lambda on, body: on.whole(generated(body)),
            b"POST /generate_stream": lambda on, body: on.stream(_length(body), generated_event),
            b"POST /v1/chat/completions": lambda on, body: _openai(on, body, chat, chat_event),
            b"POST /v1/completions": lambda on, body: _openai(on, body, completion, completion_event),
            b"POST /v1/load_lora_adapter": self._load,
            b"POST /v1/unload_lora_adapter": self._unload,
            b"POST /stub": self._set,
            b"GET /health": lambda on, _: on.send({}),
            b"GET /ping": lambda on, _: on.send({}),
            b"GET /version": lambda on, _: on.send({"version": "0.33.0"}),
            b"GET /info": lambda on, _: on.send(self._info()),
            b"GET /v1/models": lambda on, _: on.send({"object": "list", "data": self._models()}),
        }

    def _info(self) -> dict[str, Any]:
        limits = {"max_input_tokens": 4095, "max_total_tokens": 4096, "max_best_of": 1}
        slots = {"max_concurrent_requests": self.slots} if self.slots else {}
        return {"model_id": MODEL, **limits, **slots}

    def _models(self) -> list[dict[str, Any]]:
        adapters = [{"id": name, "root": path, "parent": MODEL} for name, path in self.loaded.items()]
        return [{"id": MODEL, "root": MODEL, "parent": None, "max_model_len": 4096}, *adapters]

    def _load(self, on: Connection, body: Body) -> None:
        self.loaded[body["lora_name"]] = body["lora_path"]
        on.send({})

    def _unload(self, on: Connection, body: Body) -> None:
        self.loaded.pop(body["lora_name"], None)
        on.send({})

    def _set(self, on: Connection, body: Body) -> None:
        self.slots = int(body.get("slots", self.slots))
        self.seconds = float(body.get("seconds", self.seconds))
        self.token_seconds = float(body.get("token_seconds", self.token_seconds))
        on.send({})


class Connection(asyncio.Protocol):
    """One caller's connection: a request, its answer, the next request."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = b""
        self._pending: asyncio.TimerHandle | None = None
        self._holds = False
        self._out: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._out = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Stops generating, as servers do when their caller goes away."""
        if self._pending is not None:
            self._pending.cancel()
        self._leave()

    def data_received(self, data: bytes) -> None:
        """Answers once a request is whole; callers wait for an answer before they ask again."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end]
        size = _content_length(head)
        if len(self._received) < end + 4 + size:
            return
        body = self._received[end + 4 : end + 4 + size]
        self._received = self._received[end + 4 + size :]
        answer = self._stub.routes.get(head[: head.find(b" HTTP/1.1")])
        if answer is None:
            self.send({"error": "no such route"}, b"404 Not Found")
        else:
            answer(self, orjson.loads(body) if body else {})

    def send(self, answer: object, status: bytes = b"200 OK") -> None:
        """Writes a whole answer at once."""
        body = orjson.dumps(answer)
        more = b"retry-after: 1\r\n" if status.startswith(b"429") else b""
        head = b"HTTP/1.1 %b\r\n%b%bcontent-length: %d\r\n\r\n" % (status, _JSON, more, len(body))
        self._out.write(head + body)

    def whole(self, answer: object) -> None:
        """Writes a generated answer when its time has passed, or refuses it."""
        if not self._enter():
            return
        if self._stub.seconds:
            self._later(self._stub.seconds, lambda: self._finish(answer))
        else:
            self._finish(answer)

    def _finish(self, answer: object) -> None:
        self._leave()
        self.send(answer)

    def stream(self, count: int, event: Event) -> None:
        """Writes a generated answer token by token, or refuses it."""
        if self._enter():
            self._out.write(_EVENTS)
            self._token(1, count, event)

    def _token(self, number: int, count: int, event: Event) -> None:
        events = b"".join(event(f" tok{time.monotonic_ns() // 1000}", number, count))
        self._out.write(b"%x\r\n%b\r\n" % (len(events), events))
        if number == count:
            self._leave()
            self._out.write(b"0\r\n\r\n")
        else:
            self._later(self._stub.token_seconds, lambda: self._token(number + 1, count, event))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._pending = asyncio.get_running_loop().call_later(seconds, call)

    def _enter(self) -> bool:
        if self._stub.slots and self._stub.busy >= self._stub.slots:
            self.send(_FULL, b"429 Too Many Requests")
            return False
        self._stub.busy += 1
        self._holds = True
        return True

    def _leave(self) -> None:
        self._stub.busy -= self._holds
        self._holds = False


def generated(body: Body) -> dict[str, Any]:
    """Returns TGI's answer of /generate."""
    count = _length(body)
    tokens = [{"id": n, "text": " tok", "logprob": -0.5, "special": False} for n in range(count)]
    details = {**_details(count), "prefill": _prefill(body), "tokens": tokens}
    return {"generated_text": " tok" * count, "details": details}


def generated_event(text: str, number: int, count: int) -> list[bytes]:
    """Returns TGI's event of a token."""
    is_last = number == count
    token = {"id": number, "text": text, "logprob": -0.5, "special": False}
    details = {**_details(count), "input_length": _PROMPT_TOKENS} if is_last else None
    whole = " tok" * count if is_last else None
    return [_event({"index": number, "token": token, "generated_text": whole, "details": details})]


def chat(body: Body) -> dict[str, Any]:
    """Returns OpenAI's chat completion."""
    count = _length(body)
    message = {"role": "assistant", "content": " tok" * count}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    return {**_envelope("chat.completion", [choice]), "usage": _usage(count)}


def chat_event(text: str, number: int, count: int) -> list[bytes]:
    """Returns OpenAI's chunks of a token; the last is followed by what ends a stream."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    ending = {"index": 0, "delta": {"content": ""}, "finish_reason": "length"}
    return _chunks("chat.completion.chunk", choice, ending, number == count, count)


def completion(body: Body) -> dict[str, Any]:
    """Returns OpenAI's completion, with vLLM's log-probabilities of the prompt."""
    count = _length(body)
    choice: dict[str, Any] = {"index": 0, "text": " tok" * count, "finish_reason": "length"}
    if body.get("prompt_logprobs") is not None:
        read = [{str(token["id"]): {"logprob": token["logprob"]}} for token in _prefill(body)[1:]]
        choice["prompt_logprobs"] = [None, *read]
    return {**_envelope("text_completion", [choice]), "usage": _usage(count)}


def completion_event(text: str, number: int, count: int) -> list[bytes]:
    """Returns OpenAI's chunks of a token."""
    choice = {"index": 0, "text": text, "finish_reason": None}
    ending = {"index": 0, "text": "", "finish_reason": "length"}
    return _chunks("text_completion", choice, ending, number == count, count)


def _openai(on: Connection, body: Body, whole: Callable[[Body], object], event: Event) -> None:
    if body.get("stream"):
        on.stream(_length(body), event)
    else:
        on.whole(whole(body))


def _chunks(kind: str, choice: object, ending: object, is_last: bool, count: int) -> list[bytes]:
    chunks = [_event(_envelope(kind, [choice]))]
    if is_last:
        chunks.append(_event(_envelope(kind, [ending])))
        chunks.append(_event({**_envelope(kind, []), "usage": _usage(count)}))
        chunks.append(b"data: [DONE]\n\n")
    return chunks


def _envelope(kind: str, choices: list[Any]) -> dict[str, Any]:
    return {"id": "stub-1", "object": kind, "created": 1, "model": MODEL, "choices": choices}


def _event(data: object) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _usage(count: int) -> dict[str, int]:
    return {**_USAGE, "completion_tokens": count, "total_tokens": _PROMPT_TOKENS + count}


def _details(count: int) -> dict[str, Any]:
    return {"finish_reason": "length", "generated_tokens": count, "seed": None}


def _length(body: Body) -> int:
    given = body.get("parameters") or body
    asked = given.get("max_new_tokens") or given.get("max_completion_tokens") or given.get("max_tokens")
    return int(asked or TOKENS)


def _prefill(body: Body) -> list[dict[str, Any]]:
    """Returns the prompt's tokens, read differently by each adapter: a canary has to see an effect."""
    given = body.get("parameters") or body
    named = given.get("adapters") or given.get("adapter_id") or given.get("model") or ""
    shift = zlib.crc32(json.dumps(named).encode()) % 997 / 500
    return [
        {"id": n, "text": "x", "logprob": None if n == 0 else -1.0 - (n * shift) % 3}
        for n in range(_PROMPT_TOKENS)
    ]


def _content_length(head: bytes) -> int:
    place = head.lower().find(b"content-length:")
    return int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0


async def run() -> None:
    """Serves until standard input ends, after a line ``{"port": …}``."""
    stub = Stub()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(stub), "127.0.0.1", 0, backlog=2048
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    gc.disable()
    uvloop.run(run())
