"""Whatever callers send, they get an answer or a typed error: never INTERNAL, never 500."""

from __future__ import annotations

import collections
import random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from lorauter.registry.v1 import registry_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = 1_200
METHODS = [
    method
    for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    if not (method.client_streaming or method.server_streaming)
]
TEXTS = [
    "p",
    "t",
    "a",
    "base",
    "",
    "exact_match",
    "a\x00b",
    "é" * 5_000,
    "http://h:1/x",
    f"n/m@{'0' * 40}",
    "/etc",
]
NUMBERS = [0, 1, 2, -1, 7, 2**31 - 1, -(2**31)]
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def text(draw: random.Random) -> str:
    if draw.random() < 0.8:
        return draw.choice(TEXTS)
    planes = ((1, 0x7F), (0x80, 0xD7FF), (0x10000, 0x10FFFF))
    return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(0, 20)))


def value(draw: random.Random, field: Any) -> Any:
    if field.enum_type is not None:
        return draw.choice([0, 1, 2, 3, 77, -1])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text(draw)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return draw.choice([0.0, 0.5, 1.0, -1.0, 1e308, float("nan"), float("inf")])
    return draw.choice(NUMBERS)


def fill(draw: random.Random, message: Message) -> None:
    """Sets most fields of a message, at any depth, to what is likely to hurt."""
    for field in message.DESCRIPTOR.fields:
        if draw.random() < 0.25:
            continue
        if field.is_repeated:
            for _ in range(draw.randint(0, 3)):
                if field.message_type is not None:
                    fill(draw, getattr(message, field.name).add())
                else:
                    getattr(message, field.name).append(value(draw, field))
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(draw, getattr(message, field.name))
        else:
            setattr(message, field.name, value(draw, field))


def junk(draw: random.Random, depth: int = 0) -> Any:
    """Returns some JSON."""
    if depth < 2 and draw.random() < 0.3:
        return [junk(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    choices = [text(draw), draw.choice(NUMBERS), 10**30, 0.5, None, True, {}]
    return draw.choice(choices)


async def test_no_message_is_answered_internal(shared: Any) -> None:
    draw = random.Random(20)
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="b"))
    codes: collections.Counter[str] = collections.Counter()
    for _ in range(CALLS):
        method = draw.choice(METHODS)
        request = getattr(pb, method.input_type.name)()
        fill(draw, request)
        try:
            await getattr(shared.rpc, method.name)(request, timeout=30)
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
            if error.code() in DEFECTS:
                pytest.fail(f"{method.name} {request}: {error.details()}")
    assert len(codes) >= 3, codes


async def test_no_request_is_answered_500(shared: Any) -> None:
    draw = random.Random(21)
    document = (await shared.http.get("/openapi.json")).json()
    routes = [(method, path) for path, ways in document["paths"].items() for method in ways]
    fields = sorted(
        {
            name
            for schema in document["components"]["schemas"].values()
            for name in schema.get("properties", {})
        }
    )
    for _ in range(CALLS):
        method, path = draw.choice(routes)
        if path.endswith("/events"):
            continue
        for name in (
            "pool_id",
            "task_id",
            "adapter_id",
            "backend_id",
            "operation_id",
            "decision_id",
            "key_id",
            "digest",
            "alias",
        ):
            path = path.replace(f"{{{name}}}", draw.choice(["p", "t", "a", "nil", "%00", "%F0%9F", "A b"]))
        query = {name: str(junk(draw)) for name in draw.sample(fields, draw.randint(0, 2))}
        body = {name: junk(draw) for name in draw.sample(fields, draw.randint(0, 12))}
        headers = {
            "if-match": draw.choice(["", '"1"', "*", "W/x"]),
            "idempotency-key": draw.choice(["", "k"]),
        }
        answer = await shared.http.request(method, path, params=query, json=body, headers=headers)
        assert answer.status_code not in (500, 502), (method, path, query, body, answer.text)
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json"
