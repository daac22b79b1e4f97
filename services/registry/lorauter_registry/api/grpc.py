"""RegistryService over gRPC: every unary RPC is the service's method of the same name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, get_type_hints

from google.protobuf.message import Message

from lorauter.errors import InvalidArgument
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.registry.v1 import registry_pb2_grpc
from lorauter.server.grpc import Context, GrpcServer
from lorauter_registry.api.archives import ArchiveStreams
from lorauter_registry.api.calls import SERVICE, Calls
from lorauter_registry.api.convert import to_message, to_value
from lorauter_registry.domain.examples import MAX_CHUNK_EXAMPLES, ExampleSet
from lorauter_registry.domain.fields import Value
from lorauter_registry.domain.requests import GetById, PutValidationSet

MAX_CHUNK_BYTES = 1024 * 1024
"""Largest chunk of a validation set."""


class _Streams(ArchiveStreams):
    """The RPCs that stream."""

    def __init__(self, calls: Calls, max_validation_set_bytes: int) -> None:
        super().__init__(calls)
        self._max_bytes = max_validation_set_bytes

    async def PutValidationSet(  # noqa: N802
        self, pieces: AsyncIterable[pb.PutValidationSetRequest], _: Context
    ) -> pb.Task:
        """Takes a header and chunks of examples; see ValidationSets.put_validation_set."""
        header: PutValidationSet | None = None
        examples = ExampleSet(self._max_bytes)
        async for piece in pieces:
            if header is None:
                header = _header(piece)
            else:
                _take(piece, examples)
        if header is None:
            raise _no_header()
        answer = await self._calls.run(self._calls.registry.put_validation_set, header, examples)
        return to_message(answer, pb.Task)

    async def WatchOperation(  # noqa: N802
        self, request: pb.WatchOperationRequest, _: Context
    ) -> AsyncIterator[pb.Operation]:
        """Streams an operation at every change until it has ended."""
        async for operation in self._calls.watch(to_value(request, GetById)):
            yield to_message(operation, pb.Operation)


def add_registry(server: GrpcServer, calls: Calls, max_validation_set_bytes: int) -> None:
    """Adds RegistryService to a server."""
    servicer: Any = _Streams(calls, max_validation_set_bytes)
    for method in SERVICE.methods:
        if not hasattr(_Streams, method.name):
            answer = getattr(pb, method.output_type.name)
            call = getattr(calls.registry, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
            run = calls.run_alone if method.name == "ImportAffinities" else calls.run
            setattr(servicer, method.name, _unary(run, call, answer))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server.server)
    server.announce(SERVICE)


def _unary(
    run: Callable[..., Awaitable[Message]], call: Callable[[Any], Value], answer: type[Message]
) -> Callable[..., Any]:
    asked = _asked(call)

    @functools.wraps(call)
    def converted(request: Message) -> Message:
        return to_message(call(to_value(request, asked)), answer)

    async def serve(request: Message, _: Context) -> Message:
        # on the thread, for to convert a long list takes longer than others should wait
        return await run(converted, request)

    return serve


def _asked(call: Callable[[Any], Value]) -> type[Value]:
    """Returns the type of a call's only argument."""
    (parameter,) = inspect.signature(call).parameters
    kind: type[Value] = get_type_hints(call)[parameter]
    return kind


def _header(piece: pb.PutValidationSetRequest) -> PutValidationSet:
    if piece.WhichOneof("piece") != "header":
        raise _no_header()
    return to_value(piece.header, PutValidationSet)


def _no_header() -> InvalidArgument:
    return InvalidArgument("MISSING_HEADER", "the first message must carry the header with the task's id")


def _take(piece: pb.PutValidationSetRequest, examples: ExampleSet) -> None:
    if piece.WhichOneof("piece") == "header":
        raise InvalidArgument("INVALID_FIELD", "only the first message may carry the header", field="header")
    if len(piece.chunk.examples) > MAX_CHUNK_EXAMPLES or piece.ByteSize() > MAX_CHUNK_BYTES + 1_024:
        raise InvalidArgument(
            "CHUNK_TOO_LARGE",
            f"a chunk has at most {MAX_CHUNK_EXAMPLES} examples and {MAX_CHUNK_BYTES} bytes: send several",
            field="chunk",
        )
    examples.extend((example.input, example.target) for example in piece.chunk.examples)
