"""Declares an RPC once, for the blocking and the asynchronous client alike.

A declared call takes the keyword arguments of its request message, so editors and mypy know them.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, overload

from google.protobuf.message import Message

from lorauter.client.aio_transport import AsyncTransport
from lorauter.client.transport import SyncTransport

P = ParamSpec("P")
R = TypeVar("R", bound=Message)
I = TypeVar("I", bound=Message)  # noqa: E741
Page = TypeVar("Page", bound=Message)
C_co = TypeVar("C_co", covariant=True)


class SyncNamespace:
    """The calls of one service, blocking."""

    service: ClassVar[str]

    def __init__(self, transport: SyncTransport) -> None:
        self.transport = transport


class AsyncNamespace:
    """The calls of one service, asynchronous."""

    service: ClassVar[str]

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport


class Unary(Generic[P, R]):
    """A call with one request and one answer.

    If the request has a ``request_id`` and the caller set none, a fresh UUID makes the write
    idempotent. Retried on UNAVAILABLE if it is a write with a ``request_id`` or declared ``read``.
    """

    def __init__(
        self, rpc: str, request: Callable[P, Message], response: type[R], read: bool = False
    ) -> None:
        self.rpc = rpc
        self.request = request
        self.response = response
        self.read = read

    @overload
    def __get__(self, instance: SyncNamespace, owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, instance: AsyncNamespace, owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: SyncNamespace | AsyncNamespace, owner: type) -> Callable[P, Any]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            request = self.request(*args, **kwargs)
            idempotent = with_request_id(request) or self.read
            path = f"/{instance.service}/{self.rpc}"
            return instance.transport.unary(path, request, self.response, idempotent=idempotent)

        return call


class _TakesId(Protocol[C_co]):
    def __call__(self, id: str) -> C_co: ...


class Lookup(Generic[R]):
    """A call that returns the resource with an id."""

    def __init__(self, rpc: str, request: Callable[..., Message], response: type[R]) -> None:
        self._call = Unary(rpc, request, response, read=True)

    @overload
    def __get__(self, instance: SyncNamespace, owner: type) -> _TakesId[R]: ...
    @overload
    def __get__(self, instance: AsyncNamespace, owner: type) -> _TakesId[Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: SyncNamespace | AsyncNamespace, owner: type) -> _TakesId[Any]:
        bound: Callable[..., Any] = self._call.__get__(instance, owner)

        def call(id: str) -> Any:
            return bound(id=id)

        return call


class Listing(Generic[P, Page, I]):
    """A paged call, as an iterator over the items of all pages from ``page_token`` on."""

    def __init__(
        self,
        rpc: str,
        request: Callable[P, Message],
        page: type[Page],
        items: Callable[[Page], Any],
        item: type[I],
    ) -> None:
        self.rpc = rpc
        self.request = request
        self.page = page
        self.items = items
        self.item = item

    @overload
    def __get__(self, instance: SyncNamespace, owner: type) -> Callable[P, Iterator[I]]: ...
    @overload
    def __get__(self, instance: AsyncNamespace, owner: type) -> Callable[P, AsyncIterator[I]]: ...
    def __get__(self, instance: SyncNamespace | AsyncNamespace, owner: type) -> Callable[P, Any]:
        path = f"/{instance.service}/{self.rpc}"

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            request = self.request(*args, **kwargs)
            if isinstance(instance, SyncNamespace):
                return self._pages(instance.transport, path, request)
            return self._async_pages(instance.transport, path, request)

        return call

    def _pages(self, transport: SyncTransport, path: str, request: Any) -> Iterator[I]:
        while True:
            page: Any = transport.unary(path, request, self.page, idempotent=True)
            yield from self.items(page)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def _async_pages(self, transport: AsyncTransport, path: str, request: Any) -> AsyncIterator[I]:
        while True:
            page: Any = await transport.unary(path, request, self.page, idempotent=True)
            for item in self.items(page):
                yield item
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def with_request_id(request: Any) -> bool:
    """Gives a write a ``request_id`` if it has none; returns whether the message has that field."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name:
        return False
    request.request_id = request.request_id or str(uuid.uuid4())
    return True
