"""Builds requests from plain Python values, for the blocking and the asynchronous client alike."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from lorauter.errors import InvalidArgument
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2
from lorauter.router.v1 import router_pb2

Prompt = str | Sequence[router_pb2.ChatMessage | Mapping[str, str]]
"""A raw text, or a conversation of messages with ``role`` and ``content``."""

Example = registry_pb2.ValidationExample | Mapping[str, str] | tuple[str, str]
"""A validation example: a message, ``{"input": …, "target": …}``, or (input, target)."""

CHUNK_EXAMPLES = 1000
CHUNK_BYTES = 768 * 1024
"""A chunk is cut before it exceeds either; the registry takes 1,000 examples and 1 MiB."""

_SAMPLING = tuple(gateway_pb2.GenerationParameters.DESCRIPTOR.fields_by_name)


class RouteOptions(TypedDict, total=False):
    """Restrictions on routing; see lorauter.router.v1.RouteRequest for each."""

    pool: str
    strategy: str
    max_adapters: int
    tags: Sequence[str]
    exclude_tasks: Sequence[str]
    exclude_adapters: Sequence[str]
    min_generation: str
    explain: bool
    why_not: Sequence[str]


class GenerateOptions(TypedDict, total=False):
    """How to answer. ``adapter`` pins an adapter and ``base`` the bare model; without both, the
    router decides, under ``routing``. The rest is lorauter.gateway.v1.GenerationParameters.
    """

    pool: str
    adapter: str
    base: bool
    routing: RouteOptions
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int
    stop: Sequence[str]


def chat_messages(
    prompt: Sequence[router_pb2.ChatMessage | Mapping[str, str]],
) -> list[router_pb2.ChatMessage]:
    """Returns the messages of a conversation."""
    return [
        message if isinstance(message, router_pb2.ChatMessage) else router_pb2.ChatMessage(**message)
        for message in prompt
    ]


def route_request(prompt: Prompt, **options: Unpack[RouteOptions]) -> router_pb2.RouteRequest:
    """Returns the request that routes ``prompt``."""
    if isinstance(prompt, str):
        return router_pb2.RouteRequest(query=prompt, **options)
    return router_pb2.RouteRequest(messages=chat_messages(prompt), **options)


def generate_request(prompt: Prompt, **options: Unpack[GenerateOptions]) -> gateway_pb2.GenerateRequest:
    """Returns the request that answers ``prompt``; raises InvalidArgument for a pin and the base at once."""
    if options.get("adapter") and options.get("base"):
        raise InvalidArgument("EXCLUSIVE_FIELDS", "set adapter or base, not both", field="adapter")
    request = gateway_pb2.GenerateRequest(pool=options.get("pool", ""))
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.messages.extend(chat_messages(prompt))
    if adapter := options.get("adapter", ""):
        request.adapter = adapter
    if options.get("base", False):
        request.base = True
    if routing := options.get("routing"):
        request.routing.CopyFrom(route_request("", **routing))
    sampling: dict[str, Any] = {name: options[name] for name in _SAMPLING if name in options}  # type: ignore[literal-required]
    request.parameters.CopyFrom(gateway_pb2.GenerationParameters(**sampling))
    return request


def validation_header(task_id: str, etag: str, request_id: str) -> registry_pb2.PutValidationSetHeader:
    """Returns the header of an upload, with a ``request_id`` of its own where none is given."""
    return registry_pb2.PutValidationSetHeader(
        task_id=task_id, etag=etag, request_id=request_id or str(uuid.uuid4())
    )


def validation_stream(
    header: registry_pb2.PutValidationSetHeader, examples: Iterable[Example]
) -> Iterator[registry_pb2.PutValidationSetRequest]:
    """Yields the header, then the examples in chunks that the registry takes."""
    yield registry_pb2.PutValidationSetRequest(header=header)
    chunk = registry_pb2.ValidationExampleChunk()
    size = 0
    for example in map(_validation_example, examples):
        if chunk.examples and (
            len(chunk.examples) == CHUNK_EXAMPLES or size + example.ByteSize() > CHUNK_BYTES
        ):
            yield registry_pb2.PutValidationSetRequest(chunk=chunk)
            chunk, size = registry_pb2.ValidationExampleChunk(), 0
        chunk.examples.append(example)
        size += example.ByteSize()
    if chunk.examples:
        yield registry_pb2.PutValidationSetRequest(chunk=chunk)


def import_header(with_keys: bool, request_id: str) -> registry_pb2.ImportRegistryHeader:
    """Returns the header of an import, with a ``request_id`` of its own where none is given."""
    return registry_pb2.ImportRegistryHeader(with_keys=with_keys, request_id=request_id or str(uuid.uuid4()))


def import_stream(
    header: registry_pb2.ImportRegistryHeader, pieces: Iterable[bytes]
) -> Iterator[registry_pb2.ImportRegistryRequest]:
    """Yields the header, then an archive in messages that the registry takes."""
    yield registry_pb2.ImportRegistryRequest(header=header)
    for piece in pieces:
        for start in range(0, len(piece), CHUNK_BYTES):
            yield registry_pb2.ImportRegistryRequest(data=piece[start : start + CHUNK_BYTES])


def _validation_example(example: Example) -> registry_pb2.ValidationExample:
    if isinstance(example, registry_pb2.ValidationExample):
        return example
    if isinstance(example, Mapping):
        return registry_pb2.ValidationExample(input=example["input"], target=example["target"])
    return registry_pb2.ValidationExample(input=example[0], target=example[1])
