"""Requests to every route of an HTTP service: by schemathesis from its document, or from fields that hurt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import httpx
import hypothesis
import requests
import schemathesis
from schemathesis.core.result import Ok

from tests.security.fuzz_grpc import DOUBLES, HANG_SECONDS, NUMBERS, Said, text

GENERATION = schemathesis.GenerationMode

ENGINE_ROUTES = (
    *(("POST", "/"), ("POST", "/generate"), ("POST", "/generate_stream"), ("POST", "/tokenize")),
    *(("POST", "/chat_tokenize"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions")),
    *(("POST", "/score"), ("POST", "/generate_batch"), ("POST", "/invocations"), ("GET", "/info")),
    *(("GET", "/v1/models"), ("GET", "/health"), ("PUT", "/generate"), ("GET", "/nowhere")),
)
"""TGI's, which the engine gives no document of, and its own."""
ENGINE_FIELDS = {
    "": ("inputs", "stream", "parameters", "messages", "prompt", "model", "items", "max_tokens", "tools"),
    "parameters": (
        *(
            "adapter_id",
            "adapters",
            "best_of",
            "decoder_input_details",
            "details",
            "do_sample",
            "frequency_penalty",
        ),
        *(
            "grammar",
            "max_new_tokens",
            "repetition_penalty",
            "return_full_text",
            "seed",
            "stop",
            "temperature",
        ),
        *("top_k", "top_n_tokens", "top_p", "truncate", "typical_p", "watermark"),
    ),
    "messages": ("role", "content", "name", "tool_calls"),
    "items": ("prompt", "target", "adapters", "messages"),
    "adapters": ("id", "weight"),
}


@schemathesis.serializer("application/x-ndjson")
def _lines(_: Any, value: Any) -> bytes:
    """Writes what schemathesis makes for a body of JSON lines, which its document calls a text."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


def from_document(
    url: str, headers: dict[str, str], count: int, seed: int, told: Callable[[Said], None]
) -> None:
    """Has schemathesis make requests, good and bad, for each operation of a running service's document."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    share, session = -(-count // (2 * len(operations))), requests.Session()
    session.trust_env = False
    for number, operation in enumerate(operations):
        for mode in (GENERATION.POSITIVE, GENERATION.NEGATIVE):
            _ask_all(
                operation,
                mode,
                share,
                seed * 1_000 + number,
                lambda case: told(_asked(case, url, headers, session)),
            )


def _ask_all(operation: Any, mode: Any, count: int, seed: int, ask: Callable[[Any], None]) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        ask(case)

    with suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong where nothing is taken
        each()


def _asked(case: Any, url: str, headers: dict[str, str], session: requests.Session) -> Said:
    what = f"{case.method} {case.path}"
    began = time.monotonic()
    is_stream = case.path.endswith("/events")
    try:
        answer = case.call(
            base_url=url, headers=headers, session=session, timeout=2 if is_stream else HANG_SECONDS
        )
    except requests.Timeout:
        return Said(what, "200" if is_stream else "none", "", hung=not is_stream)
    except (requests.RequestException, ValueError) as error:  # what requests itself does not send
        return Said(what, "not sent", type(error).__name__, time.monotonic() - began > HANG_SECONDS)
    return Said(what, str(answer.status_code), answer.text[:300] if answer.status_code >= 500 else "")


def junk(draw: Random, name: str = "", depth: int = 0) -> Any:
    """Returns some JSON for a field; objects have fields of its name's."""
    if depth < 4 and draw.random() < (0.9 if name in ENGINE_FIELDS else 0.1):
        held = {
            each: junk(draw, each, depth + 1)
            for each in ENGINE_FIELDS.get(name, ("a",))
            if draw.random() < 0.4
        }
        return [held] * draw.choice([0, 1, 1, 2, 70]) if name in ("messages", "items", "adapters") else held
    roll = draw.random()
    if roll < 0.4:
        return text(draw)
    if roll < 0.7:
        return draw.choice([1, 2, 5, *NUMBERS, *DOUBLES, 10**30])
    return draw.choice([None, True, False, [], {}, ["x"], [["x"]], "user", "assistant", [1] * 300])


def body(draw: Random) -> bytes:
    """Returns a body: JSON of some fields, or no JSON at all."""
    roll = draw.random()
    if roll < 0.9:
        made = junk(draw)
        if isinstance(made, dict) and draw.random() < 0.7:  # so that many get past the first check
            made = {"inputs": "Hello", "prompt": "Hello", **made}
            made.setdefault("parameters", {"max_new_tokens": 2})
        return json.dumps(made).encode()
    if roll < 0.95:
        return b"[" * draw.choice([5, 5_000, 200_000])
    return bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 40])))


async def engine_call(http: httpx.AsyncClient, draw: Random) -> Said:
    """Makes one request to the engine."""
    method, path = draw.choice(ENGINE_ROUTES)
    headers = {"content-type": draw.choice(["application/json"] * 5 + ["text/plain", "multipart/form-data"])}
    if draw.random() < 0.05:
        headers["content-encoding"] = draw.choice(["gzip", "br", "junk"])
    try:
        answer = await http.request(method, path, content=body(draw), headers=headers)
    except httpx.TimeoutException:
        return Said(f"{method} {path}", "none", "", hung=True)
    except httpx.HTTPError as error:
        return Said(f"{method} {path}", "broken off", repr(error))
    words = answer.text[:300] if answer.status_code >= 500 else ""
    return Said(f"{method} {path}", str(answer.status_code), words)
