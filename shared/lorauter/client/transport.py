"""Blocking calls: deadline, retry, and errors as lorauter raises them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from lorauter.client.options import Metadata, RetryPolicy
from lorauter.client.status import to_error
from lorauter.errors import Unavailable

R = TypeVar("R", bound=Message)
T = TypeVar("T")


def serialize(message: Message) -> bytes:
    """Returns the wire form of a message."""
    return message.SerializeToString()


@dataclass(frozen=True, slots=True)
class SyncTransport:
    """Calls one service over ``connect()``'s channel, each call within ``timeout_seconds``.

    ``metadata`` is sent with every call.
    """

    connect: Callable[[], grpc.Channel]
    timeout_seconds: float
    retry: RetryPolicy
    metadata: Metadata = field(default=(), repr=False)

    def unary(
        self,
        path: str,
        request: Message,
        response: type[R],
        *,
        idempotent: bool,
        timeout_seconds: float | None = None,
    ) -> R:
        """Makes a call with one answer; raises LorauterError."""
        call = self.connect().unary_unary(
            path, request_serializer=serialize, response_deserializer=response.FromString
        )
        return self._tried(
            lambda seconds: call(request, timeout=seconds, metadata=self.metadata),
            idempotent,
            timeout_seconds,
        )

    def upload(
        self,
        path: str,
        requests: Callable[[], Iterable[Message]],
        response: type[R],
        *,
        idempotent: bool,
        timeout_seconds: float | None = None,
    ) -> R:
        """Streams ``requests()`` to the server; raises LorauterError, or what ``requests`` raised."""
        call = self.connect().stream_unary(
            path, request_serializer=serialize, response_deserializer=response.FromString
        )

        def attempt(seconds: float) -> R:
            failed: list[Exception] = []
            try:
                return call(_watched(requests(), failed), timeout=seconds, metadata=self.metadata)
            except grpc.RpcError:
                if failed:
                    raise failed[0] from None
                raise

        return self._tried(attempt, idempotent, timeout_seconds)

    def download(
        self, path: str, request: Message, response: type[R], *, timeout_seconds: float | None = None
    ) -> Generator[R, None, None]:
        """Yields what the server streams; raises LorauterError. Closing the iterator cancels the call."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        call = self.connect().unary_stream(
            path, request_serializer=serialize, response_deserializer=response.FromString
        )(request, timeout=seconds, metadata=self.metadata)
        return _received(call, call.cancel)

    def _tried(self, attempt: Callable[[float], T], idempotent: bool, timeout_seconds: float | None) -> T:
        deadline = time.monotonic() + (self.timeout_seconds if timeout_seconds is None else timeout_seconds)
        for wait in self.retry.waits():
            try:
                return attempt(deadline - time.monotonic())
            except grpc.RpcError as failure:
                error = to_error(failure)
            is_last = wait is None or time.monotonic() + wait >= deadline
            if is_last or not idempotent or not isinstance(error, Unavailable):
                break
            time.sleep(wait or 0.0)
        raise error


def _watched(requests: Iterable[Message], failed: list[Exception]) -> Iterator[Message]:
    # gRPC reads the iterable on a thread of its own and hides what it raises
    try:
        yield from requests
    except Exception as error:
        failed.append(error)
        raise


def _received(call: Iterable[R], cancel: Callable[[], object]) -> Generator[R, None, None]:
    try:
        yield from call
    except grpc.RpcError as failure:
        raise to_error(failure) from None
    finally:
        cancel()
