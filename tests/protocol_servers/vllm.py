"""vLLM 0.33: ``python -m tests.protocol_servers.vllm``.

What matters to a gateway: adapters are loaded at run time under names; an unknown name is an error; unloading
forgets a name, while the engine keeps its weights until its own cache is full; loading the same name in place
goes on with old weights; too many requests at a time wait.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from tests.protocol_servers.faults import Play
from tests.protocol_servers.models import ModelFailed, Prefill, Token, collected
from tests.protocol_servers.server import Body, Server, arguments, run, streamed
from tests.protocol_servers.vllm_adapters import READING, Adapters, Refused
from tests.protocol_servers.vllm_answers import (
    Asked,
    chat_answer,
    chat_words,
    completion_answer,
    completion_words,
    error_body,
)
from tests.protocol_servers.weights import read_weights

_KINDS = {400: "BadRequestError", 404: "NotFoundError", 422: "BadRequestError"}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmServer(Server):
    """See the module."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.adapters = Adapters(
            lambda path: read_weights(path, READING, self.modules),
            options.max_lora_rank,
            options.max_loras,
            options.max_cpu_loras or options.max_loras,
            options.max_num_seqs,
        )
        self.generating = {"/v1/completions": self.completions, "/v1/chat/completions": self.chat}

    async def start(self) -> None:
        """Loads what --lora-modules names; raises Refused."""
        await super().start()
        for module in self.options.lora_modules:
            name, _, path = module.partition("=")
            self.adapters.load(name, path)

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """See Server."""
        for path in ("/health", "/ping"):
            routes.add_get(path, self._health)
        routes.add_get("/version", self._version)
        routes.add_get("/v1/models", self._models)
        if not self.options.no_runtime_lora:
            routes.add_post("/v1/load_lora_adapter", self._load)
            routes.add_post("/v1/unload_lora_adapter", self._unload)

    def guards(self, request: web.Request) -> bool:
        """See Server: vLLM's middleware asks at all paths under /v1."""
        return request.path.startswith("/v1")

    def unauthorized(self) -> web.Response:
        """See Server."""
        return web.json_response({"error": "Unauthorized"}, status=401)

    def counters(self) -> dict[str, Any]:
        """See Server."""
        return {**super().counters(), **self.adapters.counters()}

    def malformed(self, message: str) -> web.Response:
        """See Server."""
        return _error(400, f"JSON decode error: {message}", "Bad Request")

    def refusal(self, status: int) -> web.Response:
        """See Server."""
        return _error(status, "EngineCore encountered an issue.", "InternalServerError")

    async def completions(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/v1/completions."""
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            return _error(400, "[{'type': 'missing', 'loc': ('body', 'prompt')}]", "Bad Request")
        limit = body.get("max_tokens", 16)
        return await self._answered(request, Asked(prompt, body, limit, "cmpl"), play)

    async def chat(self, request: web.Request, body: Body, play: Play) -> web.StreamResponse:
        """/v1/chat/completions."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            return _error(400, "[{'type': 'missing', 'loc': ('body', 'messages')}]", "Bad Request")
        if body.get("tools"):
            return _error(
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        contents = [each.get("content") for each in messages]
        if any(isinstance(c, list) and any(part.get("type") != "text" for part in c) for c in contents):
            return _error(400, "At most 0 image(s) may be provided in one prompt.")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return await self._answered(request, Asked(messages, body, limit, "chatcmpl"), play)

    async def _answered(self, request: web.Request, asked: Asked, play: Play) -> web.StreamResponse:
        name = str(asked.body.get("model") or self.model_id)
        if name != self.model_id and not self._resolved(name):
            return _error(404, f"The model `{name}` does not exist.", param="model")
        tokens = self._tokens(asked, "" if name == self.model_id else name, play)
        is_chat = asked.prefix == "chatcmpl"
        if asked.body.get("stream"):
            # what is wrong with a prompt still gets a status of its own
            try:
                await self.model.check(asked.prompt, asked.limit)
            except ModelFailed as error:
                return self._failed(error, asked)
            words = (chat_words if is_chat else completion_words)(asked, name)
            return await streamed(request, {}, play, tokens, words)
        try:
            found, finish = await collected(tokens)
            prefill = await self._read(asked, name)
        except ModelFailed as error:
            return self._failed(error, asked)
        answer = chat_answer if is_chat else completion_answer
        return web.json_response(answer(asked, name, found, finish, prefill))

    async def _tokens(self, asked: Asked, name: str, play: Play) -> AsyncGenerator[Token, None]:
        async with self.adapters.scheduled(name) as weights, play.begun(name):
            source = self.model.generate(asked.prompt, weights, asked.parameters())
            async with aclosing(play.tokens(source)) as tokens:
                async for token in tokens:
                    yield token
            if not asked.body.get("stream"):
                play.sent()

    async def _read(self, asked: Asked, name: str) -> Prefill:
        wants_echo = asked.body.get("echo") and asked.body.get("logprobs") is not None
        if asked.body.get("prompt_logprobs") is None and not wants_echo:
            return []
        async with self.adapters.scheduled("" if name == self.model_id else name) as weights:
            return await self.model.read(asked.prompt, weights)

    def _failed(self, error: ModelFailed, asked: Asked) -> web.Response:
        if error.kind != "validation":
            return _error(500, str(error), "InternalServerError")
        wanted = f"you requested {asked.limit or 0} output tokens and your prompt is too long"
        message = f"This model's maximum context length is {self.context} tokens. However, {wanted}. "
        return _error(400, f"{message}Please reduce the length of the input prompt.", param="input_tokens")

    def _resolved(self, name: str) -> bool:
        folder = self.options.resolver_dir
        if name in self.adapters.names or not folder:
            return name in self.adapters.names
        try:
            self.adapters.load(name, f"{folder}/{name}")
        except Refused:
            return False
        return True

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        fault = self.faults.now
        if fault.load_status is not None:
            return _error(fault.load_status, "Call to add_lora method failed", "InternalServerError")
        await asyncio.sleep(fault.load_seconds)
        name, path = body.get("lora_name"), body.get("lora_path")
        if name == self.model_id:
            return _error(400, f"The lora adapter '{name}' is a base model.", "InvalidUserInput")
        return _said(lambda: self.adapters.load(name, path, bool(body.get("load_inplace"))))

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        return _said(lambda: self.adapters.unload(name))

    async def _models(self, _: web.Request) -> web.Response:
        base = self._card(self.model_id, self.options.model or self.model_id, None, self.context)
        cards = [self._card(name, path, self.model_id, None) for name, path in self.adapters.paths().items()]
        return web.json_response({"object": "list", "data": [base, *cards]})

    def _card(self, name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [],
        }

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.faults.now.is_healthy else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})


def _said(work: Any) -> web.Response:
    try:
        return web.Response(text=work())
    except Refused as error:
        return _error(error.status, str(error), error.kind)


def _error(status: int, message: str, kind: str = "", param: str | None = None) -> web.Response:
    return web.json_response(error_body(status, message, kind or _KINDS[status], param), status=status)


def main() -> None:
    """Runs a server."""
    parser = arguments("vllm")
    parser.add_argument("--max-lora-rank", type=int, default=16, choices=_RANKS)
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--max-cpu-loras", type=int, default=0, help="0: as many as --max-loras")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--lora-modules", nargs="*", default=[], help="NAME=PATH")
    parser.add_argument("--resolver-dir", default="", help="as lora_filesystem_resolver's cache folder")
    parser.add_argument("--no-runtime-lora", action="store_true")
    options = parser.parse_args()
    run(lambda: VllmServer(options))


if __name__ == "__main__":
    main()
