"""Text Generation Inference 3.3: ``python -m tests.protocol_servers.tgi``.

What matters to a gateway: adapters are those of LORA_ADAPTERS and no others; a name that is not among them is
answered by the base without a word; a stream's errors come under status 200; ranks that its kernels pad are
scaled wrongly; too many requests at a time are refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.protocol_servers.faults import Play
from tests.protocol_servers.models import Finish, ModelFailed, Prompt, Token, collected
from tests.protocol_servers.server import Body, Server, Words, arguments, run, streamed
from tests.protocol_servers.weights import BASE, LoadError, Reading, Weights, read_weights

VERSION = "3.3.6-dev0"
READING = Reading(
    layers=frozenset(
        {
            *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
            *("gate_proj", "up_proj", "down_proj", "c_proj", "c_fc"),
        }
    ),
    needs_prefix=True,
    whole_types=True,
    refuses_others=False,
)
_ADAPTER = re.compile(r"^([^=@]+)(?:=([^@]+))?(?:@(.+))?$")
_KERNEL_RANKS = (8, 16, 32, 64, 128)
_MAX_STOPS = 4
_STATUS = {
    "validation": 422,
    "template_error": 422,
    "tool_error": 422,
    "suffix not supported": 422,
    "batch size exceeded": 422,
    "generation": 424,
    "overloaded": 429,
}
_WORDS = {
    422: ("Input validation error: `temperature` must be strictly positive", "validation"),
    424: ("Request failed during generation: Server error: CUDA error", "generation"),
    429: ("Model is overloaded", "overloaded"),
    500: ("Incomplete generation", "incomplete_generation"),
}
_PREFIXES = {"validation": "Input validation error: ", "generation": "Request failed during generation: "}


def parse_lora_adapters(text: str) -> list[tuple[str, str | None, str | None]]:
    """Returns (name, path, revision) of each entry; raises ValueError as TGI does at its start."""
    parsed = []
    for entry in text.split(",") if text else []:
        entry = entry.strip()
        match = _ADAPTER.match(entry)
        if entry.count("=") > 1 or entry.count("@") > 1 or match is None:
            raise ValueError(f"Invalid LoRA adapter format: {entry}")
        parsed.append((match[1], match[2], match[3]))
    return parsed


def padded_rank(rank: int, shards: int) -> int:
    """Returns the rank that TGI's kernels compute a rank at."""
    least = 8 * shards
    return least if rank <= least else -(-rank // 16) * 16


def as_served(weights: Weights, shards: int) -> Weights:
    """Returns what TGI adds for an adapter: where it pads the rank, all layers but the first kind shrink.

    Here they shrink all, since an engine takes one weight for an adapter.
    """
    padded = padded_rank(weights.rank, shards)
    return weights if padded == weights.rank else weights.scaled(weights.rank / padded, "padded")


@dataclass(frozen=True)
class Asked:
    """A generation as the routes have it in common."""

    prompt: Prompt
    parameters: dict[str, Any]
    name: str


class TgiServer(Server):
    """See the module."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.adapters: dict[str, Weights] = {}
        self._running = 0
        self.generating = {
            "/generate": self.generate,
            "/generate_stream": self.generate_stream,
            "/": self.compatible,
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
        }

    async def start(self) -> None:
        """Loads all adapters; raises ValueError or LoadError, as TGI does not start either."""
        await super().start()
        for name, path, _ in parse_lora_adapters(self.options.lora_adapters):
            if path is None:
                raise LoadError(f"{name} would be downloaded from the hub, and there is none here")
            self.adapters[name] = as_served(read_weights(path, READING, self.modules), self.options.num_shard)

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """See Server."""
        for path in ("/", "/health", "/ping"):
            routes.add_get(path, self._health)
        routes.add_get("/info", self._info)
        routes.add_get("/v1/models", self._models)
        routes.add_post("/tokenize", self._tokenize)

    def guards(self, request: web.Request) -> bool:
        """See Server: inference only; what describes the server stays open."""
        return request.path in self.generating and request.method == "POST"

    def unauthorized(self) -> web.Response:
        """See Server."""
        return web.Response(status=401)

    def counters(self) -> dict[str, Any]:
        """See Server."""
        return {**super().counters(), "adapters": list(self.adapters)}

    def malformed(self, message: str) -> web.Response:
        """See Server."""
        return web.Response(text=f"Failed to parse the request body as JSON: {message}", status=400)

    def refusal(self, status: int) -> web.Response:
        """See Server."""
        if status == 503:
            return web.json_response({"error": "unhealthy", "error_type": "healthcheck"}, status=503)
        message, kind = _WORDS.get(status, (f"status {status}", "unknown"))
        return web.json_response({"error": message, "error_type": kind}, status=status)

    async def generate(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/generate."""
        answer = await self._whole(_native(body), body, play)
        return answer if isinstance(answer, web.Response) else web.json_response(answer[0], headers=answer[1])

    async def compatible(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/: a list of one, or a stream."""
        if body.get("stream"):
            return await self.generate_stream(request, body, play)
        answer = await self._whole(_native(body), body, play)
        if isinstance(answer, web.Response):
            return answer
        return web.json_response([answer[0]], headers=answer[1])

    async def generate_stream(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/generate_stream: whatever goes wrong, the status is 200."""
        asked = _native(body)
        if isinstance(asked, web.Response):
            return asked
        tokens = self._tokens(asked, play, streams=True)
        return await streamed(request, _stream_headers(asked), play, tokens, _native_words(asked))

    async def chat(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/v1/chat/completions: ``model`` comes back as it was asked for, whatever answered."""
        asked = _chat(body)
        if isinstance(asked, web.Response):
            return asked
        name = body.get("model")
        around = _around(self.model_id if name in (None, "tgi") else str(name), "chat.completion")
        if body.get("stream"):
            has_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            tokens = self._tokens(asked, play, streams=True)
            words = _chat_words(around, has_usage)
            return await streamed(request, _stream_headers(asked), play, tokens, words)
        return await self._answered(asked, play, around, _chat_choice)

    async def completions(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/v1/completions: ``model`` is always the base's; a stream's last text may be the EOS token's."""
        asked = _completion(body)
        if isinstance(asked, web.Response):
            return asked
        around = _around(self.model_id, "text_completion")
        if body.get("stream"):
            tokens = self._tokens(asked, play, streams=True)
            return await streamed(request, _stream_headers(asked), play, tokens, _text_words(around))
        return await self._answered(asked, play, around, _text_choice)

    async def _answered(self, asked: Asked, play: Play, around: dict[str, Any], choice: Any) -> web.Response:
        try:
            tokens, finish = await collected(self._tokens(asked, play))
        except ModelFailed as error:
            return _failed(error)
        answer = {**around, "choices": [choice(tokens, finish)], "usage": _usage(finish)}
        return web.json_response(answer, headers=_headers(asked, finish))

    async def _whole(
        self, asked: Asked | web.Response, body: Body, play: Play
    ) -> tuple[dict[str, Any], dict[str, str]] | web.Response:
        if isinstance(asked, web.Response):
            return asked
        wanted = asked.parameters
        try:
            tokens, finish = await collected(self._tokens(asked, play))
            weights = self.adapters.get(asked.name, BASE)
            reads = wanted.get("decoder_input_details")
            prefill = await self.model.read(asked.prompt, weights) if reads else []
        except ModelFailed as error:
            return _failed(error)
        text = asked.prompt if wanted.get("return_full_text") else ""
        answer: dict[str, Any] = {"generated_text": f"{text}{finish.text}"}
        if wanted.get("details") or wanted.get("decoder_input_details"):
            answer["details"] = {
                **_outcome(finish),
                "prefill": prefill,
                "tokens": [token.as_tgi() for token in tokens],
                **({"top_tokens": [list(token.top) for token in tokens]} if tokens[0].top else {}),
            }
        return answer, _headers(asked, finish)

    async def _tokens(self, asked: Asked, play: Play, streams: bool = False) -> AsyncGenerator[Token, None]:
        if self._running >= self.options.max_concurrent_requests:
            raise ModelFailed("Model is overloaded", "overloaded")
        _validate(asked, streams)
        weights = self.adapters.get(asked.name, BASE)
        if weights.key and weights.rank and padded_rank(weights.rank, 1) not in _KERNEL_RANKS:
            raise ModelFailed(f"Server error: No suitable kernel. rank {weights.rank}")
        self._running += 1
        try:
            async with play.begun(asked.name if asked.name in self.adapters else ""):
                source = self.model.generate(asked.prompt, weights, asked.parameters)
                async with aclosing(play.tokens(source)) as tokens:
                    async for token in tokens:
                        yield token
                if not streams:
                    play.sent()
        finally:
            self._running -= 1

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response() if self.faults.now.is_healthy else self.refusal(503)

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_id": self.model_id,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.options.max_concurrent_requests,
                "max_best_of": 2,
                "max_stop_sequences": _MAX_STOPS,
                "max_input_tokens": self.context - 1,
                "max_total_tokens": self.context,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": VERSION,
                "sha": None,
                "docker_label": None,
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.model_id, "object": "model", "created": 0, "owned_by": self.model_id}
        return web.json_response({"object": "list", "data": [model]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["inputs"]
        pieces, start = [], 0
        for token in await self.model.read(text, BASE):
            stop = start + len(token["text"])
            pieces.append({"id": token["id"], "text": token["text"], "start": start, "stop": stop})
            start = stop
        return web.json_response(pieces)


def _native_words(asked: Asked) -> Words:
    index = itertools.count(1)
    before = asked.prompt if asked.parameters.get("return_full_text") else ""

    def render(token: Token) -> list[dict[str, Any]]:
        event: dict[str, Any] = {"index": next(index), "token": token.as_tgi()}
        if token.top:
            event["top_tokens"] = list(token.top)
        event |= {"generated_text": None, "details": None}
        if finish := token.finish:
            event["generated_text"] = f"{before}{finish.text}"
            if asked.parameters.get("details"):
                event["details"] = {**_outcome(finish), "input_length": finish.prompt_tokens}
        return [event]

    def failed(error: ModelFailed) -> dict[str, Any]:
        message, kind = _described(error)
        return {"error": message, "error_type": kind}

    return Words(render, failed, b"")


def _chat_words(around: dict[str, Any], has_usage: bool) -> Words:
    around = around | {"object": "chat.completion.chunk"}

    def render(token: Token) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": "" if token.special else token.text}
        reason = _reason(token.finish.reason) if token.finish else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        events = [{**around, "choices": [choice], "usage": None}]
        if token.finish and has_usage:
            events.append({**around, "choices": [], "usage": _usage(token.finish)})
        return events

    return Words(render, _openai_failed)


def _text_words(around: dict[str, Any]) -> Words:
    def render(token: Token) -> list[dict[str, Any]]:
        finish = token.finish
        choice = {
            "index": 0,
            "text": token.text,
            "logprobs": None,
            "finish_reason": finish.reason if finish else "",
        }
        return [{**around, "choices": [choice], **({"usage": _usage(finish)} if finish else {})}]

    return Words(render, _openai_failed)


def _openai_failed(error: ModelFailed) -> dict[str, Any]:
    return {"error": {"message": _described(error)[0], "http_status_code": 422}}


def _native(body: Body) -> Asked | web.Response:
    inputs, given = body.get("inputs"), body.get("parameters")
    if not isinstance(inputs, str) or not isinstance(given, dict | None):
        return _undeserializable("inputs" if not isinstance(inputs, str) else "parameters")
    # without any parameters TGI samples
    parameters = dict(given) if given is not None else {"do_sample": True}
    return Asked(inputs, parameters, str(parameters.pop("adapter_id", None) or ""))


def _chat(body: Body) -> Asked | web.Response:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return _undeserializable("messages")
    if body.get("tools"):
        return _failed(ModelFailed("Tool error: tools are not simulated", "tool_error"))
    contents = [each.get("content") for each in messages]
    if any(isinstance(c, list) and any(part.get("type") != "text" for part in c) for c in contents):
        return _failed(ModelFailed("image modality is not supported", "validation"))
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    return Asked(messages, _openai_parameters(body, limit), _adapter(body))


def _completion(body: Body) -> Asked | web.Response:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        return _undeserializable("prompt")
    if body.get("suffix") is not None:
        return _failed(ModelFailed("Suffix is not supported.", "suffix not supported"))
    return Asked(prompt, _openai_parameters(body, body.get("max_tokens")), _adapter(body))


def _adapter(body: Body) -> str:
    name = str(body.get("model") or "")
    return "" if name == "tgi" else name


def _openai_parameters(body: Body, limit: Any) -> dict[str, Any]:
    temperature = body.get("temperature")
    found = {
        "do_sample": temperature != 0,
        "temperature": temperature or None,
        "max_new_tokens": limit,
        "stop": [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop"),
        **{name: body.get(name) for name in ("top_p", "seed", "frequency_penalty", "repetition_penalty")},
        "top_n_tokens": body.get("top_logprobs"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _validate(asked: Asked, streams: bool) -> None:
    given = asked.parameters
    stops = given.get("stop") or []
    wrong = {
        "`inputs` cannot be empty": not asked.prompt,
        "`temperature` must be strictly positive": (given.get("temperature") or 1) <= 0,
        "`top_p` must be > 0.0 and < 1.0": not 0 < (given.get("top_p") or 0.5) < 1,
        "`max_new_tokens` must be strictly positive": given.get("max_new_tokens") == 0,
        f"`stop` supports up to {_MAX_STOPS} stop sequences. Given: {len(stops)}": len(stops) > _MAX_STOPS,
        "`best_of` != 1 is not supported when streaming tokens": streams and (given.get("best_of") or 1) > 1,
        "`decoder_input_details` == true is not supported when streaming tokens": streams
        and bool(given.get("decoder_input_details")),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ModelFailed(message, "validation")


def _described(error: ModelFailed) -> tuple[str, str]:
    return _PREFIXES.get(error.kind, "") + str(error), error.kind


def _failed(error: ModelFailed) -> web.Response:
    message, kind = _described(error)
    return web.json_response({"error": message, "error_type": kind}, status=_STATUS.get(kind, 500))


def _undeserializable(field: str) -> web.Response:
    message = f"Failed to deserialize the JSON body into the target type: missing field `{field}`"
    return web.Response(text=message, status=422)


def _outcome(finish: Finish) -> dict[str, Any]:
    return {
        "finish_reason": finish.reason,
        "generated_tokens": finish.generated_tokens,
        "seed": finish.seed,
    }


def _usage(finish: Finish) -> dict[str, int]:
    prompt, answer = finish.prompt_tokens, finish.generated_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _reason(reason: str) -> str:
    return "stop" if reason == "eos_token" else reason


def _chat_choice(_: list[Token], finish: Finish) -> dict[str, Any]:
    message = {"role": "assistant", "content": finish.text}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(finish.reason)}


def _text_choice(_: list[Token], finish: Finish) -> dict[str, Any]:
    return {"index": 0, "text": finish.text, "logprobs": None, "finish_reason": _reason(finish.reason)}


def _around(model: str, kind: str) -> dict[str, Any]:
    fingerprint = f"{VERSION}-native"
    return {
        "object": kind,
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


def _stream_headers(asked: Asked) -> dict[str, str]:
    characters = str(len(asked.prompt) if isinstance(asked.prompt, str) else len(json.dumps(asked.prompt)))
    return {"x-compute-type": "1-gpu", "x-compute-characters": characters, "x-accel-buffering": "no"}


def _headers(asked: Asked, finish: Finish) -> dict[str, str]:
    times = ("x-compute-time", "x-total-time", "x-validation-time", "x-queue-time", "x-inference-time")
    return {
        **_stream_headers(asked),
        **dict.fromkeys(times, "1"),
        "x-time-per-token": "1",
        "x-prompt-tokens": str(finish.prompt_tokens),
        "x-generated-tokens": str(finish.generated_tokens),
    }


def main() -> None:
    """Runs a server."""
    parser = arguments("tgi")
    parser.add_argument("--lora-adapters", default=os.environ.get("LORA_ADAPTERS", ""))
    parser.add_argument("--max-concurrent-requests", type=int, default=128)
    parser.add_argument("--num-shard", type=int, default=1)
    options = parser.parse_args()
    run(lambda: TgiServer(options))


if __name__ == "__main__":
    main()
