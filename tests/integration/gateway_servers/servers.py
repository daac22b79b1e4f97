"""What the suite of requests runs against: the demo's model behind each kind, or servers that somebody names.

TGI_URL and VLLM_URL name servers of one's own; ADAPTER is the folder name in the adapter store of an adapter
that they can serve, and ADAPTERS_PATH where vLLM finds that store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lorauter.lora.servers import tgi as tgi_server
from lorauter.routing.model import Adapter, Backend, Manifest, ManifestEntry
from tests.integration.gateway_servers.stand import (
    BASE_ID,
    Background,
    Gateway,
    TaskTexts,
    World,
    gateway,
    routing,
)
from tests.protocol_servers.process import running

OWN = {
    kind: os.environ[f"{kind.upper()}_URL"]
    for kind in ("tgi", "vllm")
    if os.environ.get(f"{kind.upper()}_URL")
}
KINDS = tuple(OWN) or ("engine", "tgi", "vllm")
NAME = "an-adapter"
"""The id of the adapter that is served by servers of one's own."""

Prompt = str | list[dict[str, str]]
Ask = Callable[[Prompt, str, int], httpx.Response]
"""Asks a server past the gateway: a prompt or messages, an adapter's id or nothing, and how many tokens."""


@dataclass(frozen=True)
class Target:
    """A gateway in front of one kind of server. ``best``: the adapter of each task."""

    kind: str
    gateway: Gateway
    base: str
    best: Mapping[str, str]
    ask: Ask


@contextmanager
def demo_target(
    kind: str,
    shelf: Any,
    engine_url: str,
    background: Background,
    tasks: TaskTexts,
    redis_url: str,
    log: Path,
) -> Iterator[Target]:
    """Puts a kind of server in front of the engine's model, and a gateway in front of that."""
    ranks = {name: int(shelf.rank(name)) for name in (f"{task}-a" for task in tasks.texts)}
    adapters = [Adapter(name, 1, shelf.digests[name], True, rank=rank) for name, rank in ranks.items()]
    entries = [_entry(shelf, name, rank) for name, rank in ranks.items()]
    with ExitStack() as stack:
        url = engine_url
        if kind == "tgi":
            listed = ",".join(f"{entry.name}={shelf.store.root}/{entry.name}" for entry in entries)
            server = running("tgi", engine=engine_url, model=shelf.base, context=512, lora_adapters=listed)
            url = stack.enter_context(server).url
        if kind == "vllm":
            server = running(
                "vllm", engine=engine_url, model=shelf.base, context=512, max_loras=4, max_cpu_loras=8
            )
            url = stack.enter_context(server).url
        store = str(shelf.store.root)
        world = World(
            adapters,
            {task: [f"{task}-a"] for task in tasks.texts},
            [Backend(kind, kind, url, False, adapter_slots=4, adapters_path=store)],
            [Manifest("sha256:" + "1" * 64, tuple(entries))] if kind == "tgi" else [],
        )
        router = stack.enter_context(routing(background, tasks, world))
        front = stack.enter_context(gateway(router.address, log, redis_url=redis_url))
        with httpx.Client(base_url=engine_url, timeout=60) as http:

            def ask(prompt: Prompt, adapter: str, tokens: int) -> httpx.Response:
                digest = shelf.digests.get(adapter, "")
                return _ask_engine(http, prompt, digest, tokens)

            yield Target(kind, front, BASE_ID, {task: f"{task}-a" for task in tasks.texts}, ask)


def _entry(shelf: Any, name: str, rank: int) -> ManifestEntry:
    """TGI scales ranks wrongly that its kernels pad: such an adapter is listed as a composite of itself."""
    members = ((shelf.digests[name], 1.0),)
    if rank in tgi_server().ranks:
        return ManifestEntry(shelf.folder(name), members, rank)
    composite = shelf.mix({name: 1.0}, tgi_server())
    return ManifestEntry(composite.name, members, composite.rank)


def _ask_engine(http: httpx.Client, prompt: Prompt, digest: str, tokens: int) -> httpx.Response:
    adapters = [{"id": digest, "weight": 1.0}] if digest else []
    if isinstance(prompt, str):
        parameters = {"max_new_tokens": tokens, "details": True, "adapters": adapters}
        return http.post("/generate", json={"inputs": prompt, "parameters": parameters})
    body = {"messages": prompt, "max_tokens": tokens, "temperature": 0, "adapters": adapters}
    return http.post("/v1/chat/completions", json=body)


@contextmanager
def own_target(
    kind: str, background: Background, tasks: TaskTexts, redis_url: str, log: Path
) -> Iterator[Target]:
    """Puts a gateway in front of a server of somebody's own."""
    folder, _, rank = os.environ.get("ADAPTER", "").partition(":")
    url = OWN[kind].rstrip("/")
    with httpx.Client(base_url=url, timeout=120) as http:
        base = _base_of(http, kind)
        adapters = [Adapter(NAME, 1, f"sha256:{folder}", True, rank=int(rank or 16))] if folder else []
        entry = ManifestEntry(folder, ((f"sha256:{folder}", 1.0),), int(rank or 16))
        world = World(
            adapters,
            {task: [NAME] for task in tasks.texts} if folder else {},
            [_own_backend(kind, url)],
            [Manifest("sha256:" + "1" * 64, (entry,))] if folder and kind == "tgi" else [],
            base=base,
        )

        def ask(prompt: Prompt, adapter: str, tokens: int) -> httpx.Response:
            return _ask_openly(http, kind, prompt, folder if adapter else "", base, tokens)

        with (
            routing(background, tasks, world) as router,
            gateway(router.address, log, redis_url=redis_url) as front,
        ):
            yield Target(kind, front, base, dict.fromkeys(tasks.texts, NAME if folder else ""), ask)


def _own_backend(kind: str, url: str) -> Backend:
    slots, rank = (int(os.environ.get(name, "0")) for name in ("ADAPTER_SLOTS", "MAX_RANK"))
    path = os.environ.get("ADAPTERS_PATH", "/adapters")
    return Backend(kind, kind, url, False, adapter_slots=slots, max_rank=rank, adapters_path=path)


def _base_of(http: httpx.Client, kind: str) -> str:
    if kind == "tgi":
        return str(http.get("/info").raise_for_status().json()["model_id"])
    models = http.get("/v1/models").raise_for_status().json()["data"]
    return str(next(model["id"] for model in models if not model.get("parent")))


def _ask_openly(
    http: httpx.Client, kind: str, prompt: Prompt, folder: str, base: str, tokens: int
) -> httpx.Response:
    if not isinstance(prompt, str):
        model = folder or (base if kind == "vllm" else "tgi")
        body = {"model": model, "messages": prompt, "max_tokens": tokens, "temperature": 0}
        return http.post("/v1/chat/completions", json=body)
    if kind == "tgi":
        parameters: dict[str, Any] = {"max_new_tokens": tokens, "details": True}
        parameters |= {"adapter_id": folder} if folder else {}
        return http.post("/generate", json={"inputs": prompt, "parameters": parameters})
    body = {"model": folder or base, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return http.post("/v1/completions", json=body)


def text_of(response: httpx.Response) -> str:
    """Returns the text of an answer in any of the dialects."""
    body = response.raise_for_status().json()
    if "generated_text" in body:
        return str(body["generated_text"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


__all__ = ["KINDS", "OWN", "Prompt", "Target", "demo_target", "own_target", "text_of"]
