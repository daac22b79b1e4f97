"""Calls of every gRPC method that a server's reflection tells of, with messages that are likely to hurt."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

HANG_SECONDS = 10.0
AT_ONCE_SECONDS = 0.3
DEPTH = 4
"""How deep messages are filled."""

NAMES = ("p", "t", "a", "base", "fuzz", "demo", "default", "public", "auto", "mix-1", "exact_match", "rouge1")
TEXTS = (
    *(
        "",
        " ",
        "\x00",
        "a\x00b",
        "\n",
        "é" * 5_000,
        "a" * 100_000,
        "/etc",
        "../../etc/passwd",
        "{}",
        "data: x\n\n",
    ),
    *(
        "http://127.0.0.1:9/x",
        "http://[::1",
        "dns+http://x",
        "2026-01-01T00:00:00Z",
        "g" + "0" * 16,
        "%s%n",
        "*",
    ),
    *("sha256:" + "0" * 64, "0" * 32, "\u202e", "\U0010ffff", "a" * 64, "A b", "-1", "1e309", "NaN"),
)
NUMBERS = (
    *(0, 1, 2, 3, -1, 7, 100, 1_001, 2**16, 2**31 - 1, -(2**31), 2**32 - 1),
    *(2**53, 2**63 - 1, -(2**63), 2**64 - 1),
)
DOUBLES = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 5e-324, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
METADATA = (
    "x-lorauter-tenant",
    "authorization",
    "traceparent",
    "x-request-id",
    "x-junk-bin",
    "grpc-accept-encoding",
)

DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@dataclass(frozen=True)
class Said:
    """How a call ended: its status, by name, and what was said with it. ``hung`` calls did not end."""

    what: str
    status: str
    words: str = ""
    hung: bool = False

    @property
    def is_defect(self) -> bool:
        """Whether no caller should ever get this."""
        return self.hung or self.status in {each.name for each in DEFECTS}


def reflected(address: str) -> list[MethodDescriptor]:
    """Returns the methods of lorauter's own services and of health, as the server describes them."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        names = [name for name in database.get_services() if not name.startswith("grpc.reflection")]
        services = [pool.FindServiceByName(name) for name in sorted(names)]
        methods = [method for service in services for method in service.methods]
        for method in methods:  # loads all that they name while the channel is there
            _loaded(method.input_type)
    return methods


def _loaded(message: Any, known: set[str] | None = None) -> None:
    known = set() if known is None else known
    if message is not None and message.full_name not in known:
        known.add(message.full_name)
        for field in message.fields:
            _loaded(field.message_type, known)


def text(draw: Random) -> str:
    """Returns a text: a name that exists, one that hurts, or any."""
    roll = draw.random()
    if roll < 0.4:
        return draw.choice(NAMES)
    if roll < 0.8:
        return draw.choice(TEXTS)
    planes = ((1, 0x7F), (0x80, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(0, 20)))


def _value(draw: Random, field: Any) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw.choice([*(each.number for each in field.enum_type.values), 77, -1, 2**31 - 1])
    if kind == FieldDescriptor.CPPTYPE_STRING:
        given = text(draw)
        return given.encode() if field.type == FieldDescriptor.TYPE_BYTES else given
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw.choice(DOUBLES)
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    is_signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return draw.choice([number for number in NUMBERS if least <= number <= most])


def fill(draw: Random, message: Message, depth: int = 0) -> None:
    """Sets most fields of a message, down to a depth."""
    for field in message.DESCRIPTOR.fields:
        if draw.random() < (0.3 if depth == 0 else 0.5) or depth > DEPTH:
            continue
        count = draw.choice([0, 1, 1, 2, 3, 40]) if field.is_repeated else 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for _ in range(count):
            if field.message_type is not None:
                held = getattr(message, field.name)
                part = held.add() if field.is_repeated else held
                part.SetInParent()
                fill(draw, part, depth + 1)
            elif field.is_repeated:
                getattr(message, field.name).append(_value(draw, field))
            else:
                setattr(message, field.name, _value(draw, field))


def encoded(draw: Random, method: MethodDescriptor) -> bytes:
    """Returns a message of a method as bytes; one of four is damaged."""
    message = GetMessageClass(method.input_type)()
    fill(draw, message)
    data: bytes = message.SerializeToString()
    return damaged(draw, data) if draw.random() < 0.25 else data


def damaged(draw: Random, data: bytes) -> bytes:
    """Returns bytes cut off, flipped, with wrong wire types, unknown fields, huge lengths or deep nesting."""
    way = draw.randrange(6)
    place = draw.randint(0, len(data))
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    field, wire = draw.choice([1, 2, 3, 15, 100, 2**28]), draw.randrange(8)
    tag = _varint(field << 3 | wire)
    if way == 2:
        return data + tag + bytes(draw.randrange(256) for _ in range(draw.randint(0, 12)))
    if way == 3:
        return data + _varint(draw.choice([2**20, 2**28 + 7]) << 3 | 2) + b"\x05hello"
    if way == 4:
        return data + _varint(field << 3 | 2) + _varint(draw.choice([2**31, 2**40, 2**63]))
    nested = b""
    for _ in range(200):
        nested = _varint(field << 3 | 2) + _varint(len(nested)) + nested
    return data + nested


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def metadata(draw: Random, key: str) -> list[tuple[str, str | bytes]]:
    """Returns metadata: the key, mostly, and now and then junk beside it or in its place."""
    roll = draw.random()
    sent: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {key}")] if roll < 0.93 else []
    if roll > 0.85:
        for _ in range(draw.randint(1, 3)):
            name = draw.choice(METADATA)
            junk = "".join(draw.choice(string.printable[:95]) for _ in range(draw.choice([0, 3, 60, 2_000])))
            sent.append((name, junk.encode() if name.endswith("-bin") else junk))
    return sent


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, draw: Random, key: str) -> Said:
    """Makes one call: sends 0 to 3 messages where it takes a stream, reads 3 answers where it gives one."""
    kind = "_".join(
        "stream" if each else "unary" for each in (method.client_streaming, method.server_streaming)
    )
    path = f"/{method.containing_service.full_name}/{method.name}"
    pieces = [encoded(draw, method) for _ in range(draw.randint(0, 3) if method.client_streaming else 1)]
    asked = getattr(channel, kind)(path)
    first = () if method.client_streaming else (pieces[0],)
    running = asked(*first, metadata=metadata(draw, key), timeout=HANG_SECONDS)
    try:
        if method.client_streaming:
            await _send(running, pieces)
        if method.server_streaming:
            await _some(running)
        else:
            await running
    except grpc.aio.AioRpcError as error:
        hung = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not _has_own_deadline(error)
        return Said(path, error.code().name, str(error.details()), hung)
    finally:
        running.cancel()
    return Said(path, "OK")


def _has_own_deadline(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server said so itself: then there are details of the error."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


async def _some(running: Any) -> None:
    """Reads an answer, and two more if they come at once: some streams stay open, as watches do."""
    answers = aiter(running)
    with suppress(StopAsyncIteration, TimeoutError):
        await anext(answers)
        for _ in range(2):
            await asyncio.wait_for(anext(answers), AT_ONCE_SECONDS)


async def _send(running: Any, pieces: Sequence[bytes]) -> None:
    """Sends until the server has answered: grpcio takes a write after that for an error of the call."""

    async def send() -> None:
        for piece in pieces:
            await running.write(piece)
        await running.done_writing()

    sending = asyncio.create_task(send())
    running.add_done_callback(lambda _: sending.cancel())
    with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        await sending


def draws(seed: str, count: int) -> Iterator[Random]:
    """Yields what makes each call, from seed and number alone."""
    for number in range(count):
        yield Random(f"{seed}/{number}")
