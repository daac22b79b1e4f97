"""Asynchronous calls: deadline, retry, and errors as lorauter raises them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from lorauter.client.options import Metadata, RetryPolicy, merged
from lorauter.client.status import to_error
from lorauter.client.transport import serialize
from lorauter.errors import Unavailable

R = TypeVar("R", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncTransport:
    """Calls one service over ``connect()``'s channel, each call within ``timeout_seconds``.

    ``metadata`` is sent with every call.
    """

    connect: Callable[[], grpc.aio.Channel]
    timeout_seconds: float
    retry: RetryPolicy
    metadata: Metadata = field(default=(), repr=False)
    _known: dict[str, tuple[grpc.aio.Channel, Any]] = field(default_factory=dict, init=False, repr=False)

    async def unary(
        self,
        path: str,
        request: Message,
        response: type[R],
        *,
        idempotent: bool,
        timeout_seconds: float | None = None,
        metadata: Metadata = (),
        wait_for_ready: bool = False,
    ) -> R:
        """Makes a call with one answer; raises LorauterError. ``metadata`` is sent with it, too.

        With ``wait_for_ready`` it waits for a server that is away, until its deadline.
        """
        call = self._unary_at(path, response)
        sent = merged(self.metadata, metadata)
        return await self._tried(
            lambda seconds: call(request, timeout=seconds, metadata=sent, wait_for_ready=wait_for_ready),
            idempotent,
            timeout_seconds,
        )

    def _unary_at(self, path: str, response: type[R]) -> Callable[..., Awaitable[R]]:
        channel = self.connect()
        if path not in self._known or self._known[path][0] is not channel:
            made = channel.unary_unary(
                path, request_serializer=serialize, response_deserializer=response.FromString
            )
            self._known[path] = (channel, made)
        call: Callable[..., Awaitable[R]] = self._known[path][1]
        return call

    async def upload(
        self,
        path: str,
        requests: Callable[[], Iterable[Message]],
        response: type[R],
        *,
        idempotent: bool,
        timeout_seconds: float | None = None,
    ) -> R:
        """Streams ``requests()`` to the server; raises LorauterError, or what ``requests`` raised."""
        method = self.connect().stream_unary(
            path, request_serializer=serialize, response_deserializer=response.FromString
        )

        async def attempt(seconds: float) -> R:
            call = method(timeout=seconds, metadata=self.metadata)
            sending = asyncio.create_task(_send(call, requests()))

            # A write that fails after the server's answer came would overwrite its status with INTERNAL.
            def stop(_: object) -> None:
                sending.cancel()

            call.add_done_callback(stop)
            try:
                await asyncio.wait([sending])
                error = None if sending.cancelled() else sending.exception()
                if error is not None and not isinstance(error, grpc.RpcError):
                    raise error
                return await call
            finally:
                call.cancel()

        return await self._tried(attempt, idempotent, timeout_seconds)

    async def download(
        self, path: str, request: Message, response: type[R], *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[R, None]:
        """Yields what the server streams; raises LorauterError. Closing the iterator cancels the call."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        call = self.connect().unary_stream(
            path, request_serializer=serialize, response_deserializer=response.FromString
        )(request, timeout=seconds, metadata=self.metadata)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as failure:
            raise to_error(failure) from None
        finally:
            call.cancel()

    async def _tried(
        self, attempt: Callable[[float], Awaitable[T]], idempotent: bool, timeout_seconds: float | None
    ) -> T:
        deadline = time.monotonic() + (self.timeout_seconds if timeout_seconds is None else timeout_seconds)
        for wait in self.retry.waits():
            try:
                return await attempt(deadline - time.monotonic())
            except grpc.RpcError as failure:
                error = to_error(failure)
            is_last = wait is None or time.monotonic() + wait >= deadline
            if is_last or not idempotent or not isinstance(error, Unavailable):
                break
            await asyncio.sleep(wait or 0.0)
        raise error


async def _send(call: grpc.aio.StreamUnaryCall[Message, R], requests: Iterable[Message]) -> None:
    for request in requests:
        await call.write(request)
    await call.done_writing()
