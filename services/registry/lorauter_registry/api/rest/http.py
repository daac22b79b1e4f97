"""What every REST route uses: it runs a call with what the path, the body and the headers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar, TypeVarTuple

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel, Field

from lorauter.errors import InvalidArgument
from lorauter_registry.api.calls import Calls
from lorauter_registry.api.convert import checked
from lorauter_registry.domain.fields import Value
from lorauter_registry.service import Registry

A = TypeVar("A", bound=Value)
Q = TypeVar("Q", bound=Value)
X = TypeVarTuple("X")


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    reason: str = Field(description="The same for programs, in UPPER_SNAKE_CASE.")
    metadata: dict[str, str] = Field(default_factory=dict)


class Http:
    """One request: runs calls of the service for it."""

    def __init__(self, request: Request, response: Response) -> None:
        self.calls: Calls = request.app.state.calls
        self.registry: Registry = self.calls.registry
        self._response = response

    async def read(self, call: Callable[[Q], A], kind: type[Q], **fields: Any) -> A:
        """Returns what ``call`` answers to a request of ``kind`` with these fields."""
        return await self.run(call, checked(kind, fields))

    async def run(self, call: Callable[[*X], A], *arguments: *X) -> A:
        """Returns what ``call`` answers; a resource's etag goes into the header too."""
        answer = await self.calls.run(call, *arguments)
        etag = getattr(answer, "etag", "")
        if etag:
            self._response.headers["etag"] = f'"{etag}"'
        return answer


class HttpWrite(Http):
    """One request that changes something."""

    def __init__(
        self,
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str, Header(description="Makes the write idempotent, as `request_id` in the body.")
        ] = "",
        if_match: Annotated[str, Header(description="The etag that was read, as `etag` in the body.")] = "",
    ) -> None:
        super().__init__(request, response)
        etag = if_match.strip().removeprefix("W/").strip('"')
        self._guards = {"request_id": idempotency_key, "etag": "" if etag == "*" else etag}

    async def write(
        self, call: Callable[[Q], A], kind: type[Q], body: Value | None = None, **fields: Any
    ) -> A:
        """Returns what ``call`` answers to the body, the path's fields and the headers together."""
        return await self.run(call, self.request(kind, body, **fields))

    def request(self, kind: type[Q], body: Value | None = None, **fields: Any) -> Q:
        """Returns the request that body, fields and headers make.

        Raises InvalidArgument (CONFLICTING_HEADER) if a header and the body differ.
        """
        data = {name: getattr(body, name) for name in body.model_fields_set} if body is not None else {}
        for name in ("tags", "aliases"):
            if name in data and f"replace_{name}" in kind.model_fields:
                data.setdefault(f"replace_{name}", True)
        for name, value in self._guards.items():
            if value and name in kind.model_fields and data.setdefault(name, value) != value:
                raise InvalidArgument(
                    "CONFLICTING_HEADER", f"header and body give another {name}: give one", field=name
                )
        return checked(kind, {**data, **fields})


Reading = Annotated[Http, Depends()]
Writing = Annotated[HttpWrite, Depends()]
