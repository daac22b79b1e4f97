"""TGI's own document, and our two servers that speak its protocol, on real parts.

Collected only where TGI_OPENAPI names the document: `make conformance TGI_OPENAPI=path`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lorauter import Client
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, demo_tasks, seed_adapter, seed_task
from lorauter_suite.suite import Suite, SuiteOptions

collect_ignore_glob = [] if os.environ.get("TGI_OPENAPI") else ["test_*.py"]

POISON = "Z"
"""A model that has said it, or reads it, computes nothing but NaN."""

ADAPTER = "upper-word-a"
SLOTS = 4
"""Requests that each server takes at once."""

_FORMATS = FormatChecker(())
_FORMATS.checks("int32")(lambda value: not isinstance(value, int) or -(2**31) <= value < 2**31)
_FORMATS.checks("int64")(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**63)


class Document:
    """TGI's OpenAPI document. What does not conform raises jsonschema.ValidationError."""

    def __init__(self, path: Path) -> None:
        self._document = json.loads(path.read_text(encoding="utf-8"))
        self._components = {"schemas": _nullable(self._document["components"]["schemas"])}

    def routes(self) -> set[tuple[str, str]]:
        """Returns (method, path) of all operations."""
        return {(method, path) for path, item in self._document["paths"].items() for method in item}

    def properties(self, name: str) -> dict[str, Any]:
        """Returns the properties of a schema by name."""
        found: dict[str, Any] = self._document["components"]["schemas"][name]["properties"]
        return found

    def check(self, value: object, name: str) -> None:
        """Checks a value against a named schema."""
        self._check(value, {"$ref": f"#/components/schemas/{name}"})

    def check_response(self, response: httpx.Response) -> Any:
        """Checks a body, or each event of a stream, against what its route has for its status; returns it.

        A status that the document does not have for the route must come with its error body.
        """
        path, method = response.request.url.path, response.request.method.lower()
        found = self._document["paths"][path][method]["responses"].get(str(response.status_code))
        if found is None:
            assert response.status_code >= 400
            self.check(response.json(), "ErrorResponse")
            return response.json()
        content = found.get("content")
        if content is None:
            assert response.content == b""
            return None
        media = response.headers["content-type"].partition(";")[0]
        if response.is_success:
            assert media in content
        schema = _nullable(content.get(media, next(iter(content.values())))["schema"])
        if media == "text/event-stream":
            events = sent(response.content)
            for event in events:
                self._check(event, schema)
            return events
        body = response.json() if media == "application/json" else response.text
        self._check(body, schema)
        return body

    def _check(self, value: object, schema: dict[str, Any]) -> None:
        whole = {**schema, "components": self._components}
        Draft202012Validator(whole, format_checker=_FORMATS).validate(value)


def _nullable(schema: Any) -> Any:
    """Returns a schema in which OpenAPI 3.0's ``nullable`` is said as JSON Schema says it."""
    if isinstance(schema, list):
        return [_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _nullable(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def sent(content: bytes) -> list[Any]:
    """Returns the data of a stream's events but ``[DONE]``; fails on any other byte between them."""
    *blocks, rest = content.split(b"\n\n")
    assert rest == b""
    assert all(block.startswith(b"data:") and b"\n" not in block for block in blocks)
    return [json.loads(block[5:]) for block in blocks if block != b"data: [DONE]"]


@dataclass(frozen=True)
class Server:
    """One of our servers: ``adapter`` is its name for the adapter that writes capitals."""

    name: str
    http: httpx.Client
    adapter: str
    openai_status: int
    """Status of what its OpenAI routes refuse: TGI's on the engine, OpenAI's at the gateway."""

    def ask(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    def refusal(self, response: httpx.Response, document: Document) -> str:
        """Returns the message of an error after checking its form."""
        if self.name == "gateway" and response.request.url.path.startswith("/v1/"):
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            return str(error["message"])
        return str(document.check_response(response)["error"])


@dataclass(frozen=True)
class Running:
    """The suite's servers by name."""

    servers: dict[str, Server]


@pytest.fixture(scope="session")
def document() -> Document:
    """TGI's document."""
    return Document(Path(os.environ["TGI_OPENAPI"]))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The suite without matching, on the demo pool's base, poisoned; one adapter, three tasks."""
    base = _poisoned(tmp_path_factory.mktemp("base"))
    options = SuiteOptions(
        services=("engine", "router", "registry", "worker-index", "gateway"),
        model=base,
        adapter_roots=(base, POOL_DIRECTORY),
        environment={"LORAUTER_MAX_CONCURRENT_REQUESTS": str(SLOTS)},
    )
    with ExitStack() as stack:
        suite = stack.enter_context(Suite(tmp_path_factory.mktemp("suite"), options))
        found = suite.addresses
        client = stack.enter_context(found.client())
        _register(client, base, found.engine_http)
        engine, gateway = (
            stack.enter_context(
                httpx.Client(base_url=url, headers=found.headers, timeout=60, trust_env=False)
            )
            for url in (found.engine_http, found.gateway_http)
        )
        until(lambda: gateway.post("/generate", json={"inputs": "hi"}).is_success)
        digest = client.router.resolve_adapter(adapter=ADAPTER, pool=POOL_ID).digest
        yield Running(
            {
                "engine": Server("engine", engine, digest, 422),
                "gateway": Server("gateway", gateway, ADAPTER, 400),
            }
        )


@pytest.fixture(params=["engine", "gateway"])
def server(running: Running, request: pytest.FixtureRequest) -> Server:
    """Each of the two servers."""
    return running.servers[request.param]


@pytest.fixture
def engine(running: Running) -> Server:
    """The engine."""
    return running.servers["engine"]


@pytest.fixture
def gateway(running: Running) -> Server:
    """The gateway."""
    return running.servers["gateway"]


@pytest.fixture
def full_engine(engine: Server) -> Iterator[None]:
    """Holds all of the engine's slots by calls whose bodies never end."""
    head = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    place = (engine.http.base_url.host, engine.http.base_url.port)
    with ExitStack() as stack:
        while engine.ask("/generate", body).is_success:
            stack.enter_context(socket.create_connection(place)).sendall(head)
        yield
    until(lambda: engine.ask("/generate", body).is_success)


def until(holds: Callable[[], bool]) -> None:
    """Polls until ``holds()``, for at most 30 s."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "not in 30 s"
        time.sleep(0.02)


def _register(client: Client, base: Path, engine_url: str) -> None:
    client.registry.create_pool(
        id=POOL_ID, base_model="lorauter/demo-base", base_revision="poisoned", base_path=str(base)
    )
    client.registry.register_backend(
        id="engine", pool=POOL_ID, kind=pb.BackendKind.BACKEND_KIND_ENGINE, url=engine_url
    )
    seed_adapter(client, POOL_DIRECTORY / "adapters" / ADAPTER)
    for task in list(demo_tasks())[:3]:
        seed_task(client, task)


def _poisoned(folder: Path) -> Path:
    """Writes the demo pool's base with NaN where it reads POISON, and as it is where it writes."""
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(POOL_DIRECTORY / "base" / name, folder / name)
    config = json.loads((POOL_DIRECTORY / "base" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(POOL_DIRECTORY / "base" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    token = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(POISON)
    weights["model.embed_tokens.weight"][token] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
