"""Texts that hurt, through every door: each is decided on with finite numbers, or refused with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import grpc
import httpx
import pytest

from lorauter import Client
from lorauter.client.status import to_error
from lorauter.errors import InvalidArgument
from lorauter.router.v1 import router_pb2 as pb
from lorauter_suite.seeding import POOL_ID
from lorauter_suite.suite import Addresses

MIB = 1024 * 1024
TIMEOUT = 60

DECIDED = {
    "1 MiB of words": "add " * (MIB // 4),
    "1 MiB without a space": "ab" * (MIB // 2),
    "1 MiB of punctuation": "?!" * (MIB // 2),
    "1 MiB of emoji": "🦜" * (MIB // 4),
    "100,000 times one token": "planet " * 100_000,
    "half a MiB of accents": "e" + "\u0301\u0316" * (MIB // 8),
    "emoji joined to one": "👩\u200d👩\u200d👧\u200d👦" * 100 + "🏳️\u200d🌈👍🏽",
    "right to left with overrides": "\u202e\u2067\u05e9\u05dc\u05d5\u05dd\u2069\u202c مرحبا \u200f",
    "control characters": "\x01\x02\x1b[31m\x7f\x85\u2028",
    "zero width only": "\u200b\u200d\u2060\ufeff",
    "noncharacters": "\ufffe\uffff\U0010ffff\ue000",
    "one mark": "\u0301",
    "special tokens of models": "<s></s>[CLS][SEP][MASK]<|endoftext|>",
}
REFUSED = {
    "empty": ("", "EMPTY_QUERY"),
    "white space": (" \n\t\r\u2003\u00a0\u3000", "EMPTY_QUERY"),
    "NUL": ("a\0b", "QUERY_HAS_NUL"),
    "1 MiB and a byte": ("x" * (MIB + 1), "QUERY_TOO_LARGE"),
    "1 MiB and an emoji": ("🦜" * (MIB // 4 + 1), "QUERY_TOO_LARGE"),
}
DIALECTS = {
    "/v1/chat/completions": lambda text: {
        "model": "auto", "max_tokens": 2, "messages": [{"role": "user", "content": text}]
    },
    "/v1/completions": lambda text: {"model": "auto", "max_tokens": 2, "prompt": text},
    "/generate": lambda text: {"inputs": text, "parameters": {"max_new_tokens": 2}},
    "/generate_stream": lambda text: {"inputs": text, "parameters": {"max_new_tokens": 2}},
}  # fmt: skip


def assert_decided(answer: pb.RouteResponse) -> None:
    """Checks that a decision says what to do, in numbers that are what they claim to be."""
    assert answer.action != pb.ROUTE_ACTION_UNSPECIFIED
    assert answer.action_reason
    assert answer.tasks
    figures = [answer.typicality, answer.best_single.expected_utility, *(t.probability for t in answer.tasks)]
    assert all(0 <= figure <= 1 for figure in figures)
    assert all(math.isfinite(task.similarity) for task in answer.tasks)
    weights = sum(adapter.weight for adapter in answer.adapters)
    assert weights == pytest.approx(1 if answer.action == pb.ROUTE_ACTION_ADAPTERS else 0)


def posted(addresses: Addresses, route: str, body: object) -> httpx.Response:
    """Posts JSON that is as short as it can be."""
    content = json.dumps(body, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", **addresses.headers}
    url = f"{addresses.gateway_http}{route}"
    return httpx.post(url, content=content, headers=headers, timeout=TIMEOUT)


@pytest.mark.parametrize("name", DECIDED)
def test_text_is_decided_on_alike_over_grpc_and_http_when_it_is_unusual_but_valid(
    client: Client, addresses: Addresses, name: str
) -> None:
    answer = client.route(DECIDED[name], pool=POOL_ID)
    assert_decided(answer)
    batch = client.router.route_batch(requests=[pb.RouteRequest(query=DECIDED[name], pool=POOL_ID)] * 2)
    assert [list(each.tasks) for each in batch.responses] == [list(answer.tasks)] * 2
    over_http = posted(addresses, "/v1/route", {"query": DECIDED[name], "pool": POOL_ID})
    assert over_http.status_code == 200, over_http.text[:200]
    assert [t["task_id"] for t in over_http.json()["tasks"]] == [t.task_id for t in answer.tasks]


@pytest.mark.parametrize("name", REFUSED)
def test_text_is_refused_with_reason_and_field_when_it_cannot_be_routed(
    client: Client, addresses: Addresses, name: str
) -> None:
    text, reason = REFUSED[name]
    fine = pb.RouteRequest(query="fine", pool=POOL_ID)
    for call in (
        lambda: client.route(text, pool=POOL_ID),
        lambda: client.router.route_batch(requests=[fine, pb.RouteRequest(query=text, pool=POOL_ID)]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert (caught.value.reason, caught.value.metadata["field"]) == (reason, "query")
    assert caught.value.metadata["request"] == "1"
    problem = posted(addresses, "/v1/route", {"query": text, "pool": POOL_ID})
    assert (problem.status_code, problem.json()["reason"]) == (400, reason)


@pytest.mark.parametrize("route", DIALECTS)
@pytest.mark.parametrize("name", [*DECIDED, *REFUSED])
def test_generation_answers_or_refuses_in_its_dialect_when_the_prompt_hurts(
    addresses: Addresses, route: str, name: str
) -> None:
    text = DECIDED.get(name) or REFUSED[name][0]
    answer = posted(addresses, route, DIALECTS[route](text))
    if name in DECIDED and len(text) < 512:  # what the demo's base can read
        assert answer.status_code == 200, answer.text[:300]
        assert answer.headers["x-lorauter-decision"] != "none"
        return
    assert answer.status_code == (400 if "/v1/" in route else 422), answer.text[:300]
    said = answer.json()["error"] if "/v1/" in route else {"message": answer.json()["error"]}
    assert ("less than 512 tokens" in said["message"]) == (name in DECIDED)
    if "/v1/" in route:
        assert said["code"] == ("context_length_exceeded" if name in DECIDED else REFUSED[name][1].lower())


@pytest.mark.parametrize("call", ["Route", "RouteBatch", "ResolveAdapter"])
def test_message_is_refused_when_its_text_is_not_utf_8(addresses: Addresses, call: str) -> None:
    inner = b"\x0a\x02\xff\xfe"
    message = b"\x0a" + bytes([len(inner)]) + inner if call == "RouteBatch" else inner
    with grpc.insecure_channel(addresses.router_grpc) as channel:
        raw: Any = channel.unary_unary(f"/lorauter.router.v1.RouterService/{call}")
        with pytest.raises(grpc.RpcError) as caught:
            raw(message, timeout=TIMEOUT)
    assert to_error(caught.value).reason == "MALFORMED_MESSAGE"


def test_first_user_turn_is_routed_when_there_are_100_000_messages(
    client: Client, addresses: Addresses
) -> None:
    first = [("system", ""), ("user", "how many letters has the word sunset")]
    messages = [{"role": role, "content": text} for role, text in [*first, *[("assistant", "x")] * 99_998]]
    expected = client.route(first[1][1], pool=POOL_ID)
    assert list(client.route(messages, pool=POOL_ID).tasks) == list(expected.tasks)
    answer = posted(addresses, "/v1/route", {"messages": messages[:40_000], "pool": POOL_ID})
    assert answer.json()["tasks"][0]["task_id"] == expected.tasks[0].task_id


def test_texts_are_decided_on_alike_when_accents_are_composed_or_not(client: Client) -> None:
    composed = client.route("Où est le café à Liège", pool=POOL_ID)
    apart = client.route("Ou\u0300 est le cafe\u0301 a\u0300 Lie\u0300ge", pool=POOL_ID)
    assert likelihoods(apart.tasks) == pytest.approx(likelihoods(composed.tasks), abs=1e-6)


def likelihoods(tasks: Iterable[pb.TaskMatch]) -> dict[str, float]:
    return {task.task_id: task.probability for task in tasks}
