"""Real engines on the demo's base, adapters that break in every way, and servers in front of an engine.

Neither TGI nor vLLM runs without a GPU. A front gives the real model's answers in their wire formats, names
adapters as they do, and does what they do with a name that they do not know.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lorauter.identifiers import backend_name
from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.write import write_adapter
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec, running
from lorauter_worker.adapters.engine_evaluator import EngineEvaluator
from lorauter_worker.adapters.tgi_evaluator import TgiEvaluator
from lorauter_worker.adapters.vllm_evaluator import VllmEvaluator
from lorauter_worker.ports import Question

BASE_ID = "lorauter/demo-base"
GOOD = ("dash-word-a", "reverse-word-a", "upper-word-a")
TARGETS = ("q_proj", "v_proj")
HANGS_SECONDS = 60.0
"""How long a hanging answer may keep a test's server from ending; no test waits for it."""


@dataclass(frozen=True)
class Pool:
    """A base, a store and the digests of its adapters by name."""

    base: Path
    store: AdapterStore
    digests: Mapping[str, str]
    tasks: Path

    def questions(self, task: str, adapter: str = "", count: int = 8, chat: bool = False) -> list[Question]:
        """Returns questions of a task to an adapter by name; the prompt ends as this base's template does."""
        lines = (self.tasks / task / "validation.jsonl").read_text().splitlines()[:count]
        return [self.question(row["input"], row["target"], adapter, chat) for row in map(json.loads, lines)]

    def question(self, text: str, target: str, adapter: str = "", chat: bool = False) -> Question:
        """Returns one question to an adapter by name, or to one that nobody has."""
        asked: dict[str, Any] = {"prompt": f"{text}<answer>"}
        if chat:
            asked = {"messages": [{"role": "user", "content": text}]}
        digest = self.digests.get(adapter, "sha256:" + "0" * 64) if adapter else ""
        return Question(asked, target, digest)


@pytest.fixture(scope="session")
def pool(demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The demo's base, which takes prompts as they are, with good adapters and broken ones."""
    folder = tmp_path_factory.mktemp("evaluator")
    base = folder / "base"
    shutil.copytree(demo_pool / "base", base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    store = AdapterStore(folder / "store")
    digests = {name: store.put(demo_pool / "adapters" / name) for name in GOOD}
    for name, make in BROKEN.items():
        make(folder / name, read_modules(base))
        digests[name] = store.put(folder / name)
    for number in range(24):
        _random(folder / f"random-{number}", read_modules(base), 0.02, number)
        digests[f"random-{number}"] = store.put(folder / f"random-{number}")
    return Pool(base, store, digests, demo_pool / "tasks")


def _random(folder: Path, modules: Mapping[str, tuple[int, int]], size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    _write(folder, modules, lambda shape: rng.normal(size=shape) * size)


def _write(
    folder: Path, modules: Mapping[str, tuple[int, int]], draw: Callable[[tuple[int, int]], Any]
) -> None:
    matrices = {
        name: (draw((4, width)).astype(np.float32), draw((out, 4)).astype(np.float32))
        for name, (width, out) in modules.items()
        if name.endswith(TARGETS)
    }
    write_adapter(folder, AdapterConfig(BASE_ID, 4, 4.0, False, TARGETS), matrices)


BROKEN: Mapping[str, Callable[[Path, Mapping[str, tuple[int, int]]], None]] = {
    "nan": lambda folder, modules: _write(folder, modules, lambda shape: np.full(shape, np.nan)),
    "overflowing": lambda folder, modules: _write(folder, modules, lambda shape: np.full(shape, 3e38)),
    "foreign": lambda folder, modules: _write(
        folder, {name.replace("layers", "blocks"): shape for name, shape in modules.items()}, np.ones
    ),
    "misshapen": lambda folder, modules: _write(
        folder, {name: (width + 2, out) for name, (width, out) in modules.items()}, np.ones
    ),
    "idle": lambda folder, modules: _write(folder, modules, np.zeros),
}


@contextmanager
def engine(pool: Pool, **settings: str) -> Iterator[str]:
    """Runs an engine process on the pool; yields its address."""
    port = free_port()
    environment = {
        "LORAUTER_MODEL": str(pool.base),
        "LORAUTER_MODEL_ID": BASE_ID,
        "LORAUTER_ADAPTER_STORE": str(pool.store.root),
        "LORAUTER_DEVICE": "cpu",
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_LOG_LEVEL": "error",
        **settings,
    }
    command = [sys.executable, "-m", "lorauter_engine.main"]
    with running(ProcessSpec("engine", command, environment, probe=lambda: http_ready(port))):
        yield f"http://{LOOPBACK}:{port}"


@pytest.fixture(scope="session")
def engine_url(pool: Pool) -> Iterator[str]:
    """An engine at its own settings."""
    with engine(pool) as url:
        yield url


@pytest.fixture(scope="session")
def tight_engine_url(pool: Pool) -> Iterator[str]:
    """An engine that holds two adapters, reads 6,000 bytes and serves one call at a time."""
    with engine(
        pool,
        LORAUTER_ADAPTER_COUNT="2",
        LORAUTER_MAX_BODY_BYTES="6000",
        LORAUTER_MAX_CONCURRENT_REQUESTS="1",
    ) as url:
        yield url


class _Server(ThreadingHTTPServer):
    """A server whose callers may go before they are answered."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class Front:
    """A server in front of an engine that speaks as another kind does and notes what it is asked."""

    engine_url: str
    digests: Mapping[str, str]
    """The adapters that it has, by the names that tests call them by; it knows their folders' names."""
    hangs: set[str] = field(default_factory=set)
    """Adapters that it never answers for; an empty one is the base."""
    calls: list[tuple[str, dict]] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)
    """How many calls are under way, and the most that were."""

    def __post_init__(self) -> None:
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=60, trust_env=False)
        front = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(*front.listed(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._send(*front.take(self.path, body))

            def _send(self, status: int, answer: object) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Keeps the test's output quiet."""

        self._server = _Server((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def listed(self, path: str) -> tuple[int, object]:
        return (200, {}) if path == "/health" else (404, {"detail": "Not Found"})

    def called(self, folder: str) -> str:
        """Returns what tests call an adapter, or what it was asked for by."""
        names = {backend_name(digest): name for name, digest in self.digests.items()}
        return names.get(folder, folder)

    def take(self, path: str, body: dict) -> tuple[int, object]:
        with self._lock:
            self.calls.append((path, body))
            self.busy["now"] += 1
            self.busy["most"] = max(self.busy["most"], self.busy["now"])
        try:
            if self.hangs & set(self.named(body)) and self._ends.wait(HANGS_SECONDS):
                return 503, {"detail": "the test has ended"}
            return self.answer(path, body)
        finally:
            with self._lock:
                self.busy["now"] -= 1

    def named(self, body: dict) -> list[str]:
        """Returns the names of the adapters that a body asks for."""
        names = {digest: name for name, digest in self.digests.items()}
        adapters = [item["adapters"] for item in body["items"]]
        return [names.get(each[0]["id"], "?") if each else "" for each in adapters]

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        return self.ask(path, body)

    def ask(self, path: str, body: dict) -> tuple[int, Any]:
        """Asks the engine."""
        response = self._client.post(self.engine_url + path, json=body)
        return response.status_code, response.json()


class TgiFront(Front):
    """Speaks as TGI: adapters by name, and the base for a name that it does not know."""

    def listed(self, path: str) -> tuple[int, object]:
        return (200, {"model_id": BASE_ID}) if path == "/info" else super().listed(path)

    def named(self, body: dict) -> list[str]:
        name = body["model"] if "messages" in body else body["parameters"].get("adapter_id", "")
        return ["" if name == "tgi" else self.called(name)]

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        digest = self.digests.get(self.named(body)[0], "")
        if "messages" in body:
            return self.ask(path, body | {"model": digest or "tgi"})
        parameters = {key: value for key, value in body["parameters"].items() if key != "adapter_id"}
        return self.ask(path, body | {"parameters": parameters | ({"adapter_id": digest} if digest else {})})


class VllmFront(Front):
    """Speaks as vLLM: adapters by name as listed, 404 for others, prompt_logprobs on demand."""

    resolves: frozenset[str] = frozenset()
    """Adapters that it lists only once they were asked for, as a resolver loads them."""
    hides: frozenset[str] = frozenset()
    """Adapters that it answers for and never lists."""
    roots: Mapping[str, str] = {}
    has_prompt_logprobs = True

    def listed(self, path: str) -> tuple[int, object]:
        if path != "/v1/models":
            return super().listed(path)
        asked = {name for _, body in self.calls for name in self.named(body)}
        adapters = [
            {"id": folder, "root": self.roots.get(name, f"/adapters/{folder}"), "parent": BASE_ID}
            for name in self.digests.keys() - self.hides - (self.resolves - asked)
            for folder in [backend_name(self.digests[name])]
        ]
        return 200, {"object": "list", "data": [*adapters, {"id": BASE_ID, "root": "/base", "parent": None}]}

    def named(self, body: dict) -> list[str]:
        return ["" if body["model"] == BASE_ID else self.called(body["model"])]

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        name = self.named(body)[0]
        if name and name not in self.digests:
            error = {"message": f"The model `{name}` does not exist.", "type": "NotFoundError", "code": 404}
            return 404, {"error": error}
        digest = self.digests.get(name, "")
        status, answer = self.ask(path, body | {"model": digest or BASE_ID})
        if status != 200:
            return 400, {"error": {"message": answer["error"], "type": "BadRequestError", "code": 400}}
        if "prompt_logprobs" in body and self.has_prompt_logprobs:
            holder = answer if "messages" in body else answer["choices"][0]
            holder["prompt_logprobs"] = self._read(body, digest)
        return status, answer

    def _read(self, body: dict, digest: str) -> list:
        text = body.get("prompt") or self._rendered(body)
        parameters = {"max_new_tokens": 1, "decoder_input_details": True, "details": True}
        adapter = {"adapter_id": digest} if digest else {}
        _, answer = self.ask("/generate", {"inputs": text, "parameters": parameters | adapter})
        return [
            None if at == 0 else {str(token["id"]): {"logprob": token["logprob"], "rank": 1}}
            for at, token in enumerate(answer["details"]["prefill"])
        ]

    def _rendered(self, body: dict) -> str:
        messages = body["messages"]
        end = messages[-1]["content"] if body.get("continue_final_message") else ""
        given = messages[:-1] if end else messages
        return self.ask("/chat_tokenize", {"messages": given})[1]["templated_text"] + end


@dataclass(frozen=True)
class Kind:
    """A kind of backend: its evaluator, and the server that a test calls it on."""

    name: str
    make: Callable[..., Any]
    front: type[Front]


KINDS = [
    Kind("engine", EngineEvaluator, Front),
    Kind("tgi", TgiEvaluator, TgiFront),
    Kind("vllm", VllmEvaluator, VllmFront),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of backend in turn."""
    return request.param


@pytest.fixture
def front(engine_url: str, pool: Pool) -> Iterator[Callable[..., Front]]:
    """Starts servers of a kind, by its name, in front of the engine."""
    fronts: list[Front] = []

    def start(kind: str, **given: Any) -> Front:
        made = next(each for each in KINDS if each.name == kind).front
        fronts.append(made(given.pop("engine_url", engine_url), given.pop("digests", pool.digests), **given))
        return fronts[-1]

    yield start
    for each in fronts:
        each.close()


@pytest.fixture
def evaluator() -> Iterator[Callable[..., Any]]:
    """Makes evaluators by the kind's name, of URLs or fronts, and closes them."""
    made = []

    def make(kind: str, *servers: Front | str, seconds: float = 60.0) -> Any:
        urls = [each if isinstance(each, str) else each.url for each in servers]
        made.append(next(each for each in KINDS if each.name == kind).make(urls, seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()
