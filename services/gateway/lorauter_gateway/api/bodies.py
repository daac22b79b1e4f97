"""The base of request bodies: what JSON's grammar lets through but nothing behind can carry is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lorauter.errors import InvalidArgument


class Body(BaseModel):
    """A request's whole body.

    Raises InvalidArgument (INVALID_TEXT, INVALID_NUMBER) for half surrogate pairs and for numbers that
    are not finite, wherever they are: neither gRPC nor a backend's JSON can carry them.
    """

    @model_validator(mode="before")
    @classmethod
    def _check_portable(cls, value: Any) -> Any:
        _check_portable(value)
        return value


class BodyRoute(APIRoute):
    """A route of ``(request, body)`` that reads good JSON bodies itself.

    FastAPI's solver of dependencies takes as long as all else on the way in. It still describes the route,
    and answers every body that is not a good one.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        general = super().get_route_handler()
        endpoint: Any = self.endpoint
        model: Any = self.body_field.field_info.annotation if self.body_field else None

        async def handle(request: Request) -> Response:
            if request.headers.get("content-type") != "application/json":
                return await general(request)
            try:
                body = model.model_validate(json.loads(await request.body()))
            except (ValueError, RecursionError):
                return await general(request)
            except ClientDisconnect:
                raise HTTPException(400) from None  # as FastAPI has it; nobody reads the answer
            answer: Response = await endpoint(request, body)
            return answer

        return general if model is None else handle


def _check_portable(body: Any) -> None:
    # a stack of its own, for bodies may be nested deeper than Python's
    pending = [("", body)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, str):
            _check_text(path, value)
        elif isinstance(value, float) and not math.isfinite(value):
            message = f"{path or 'body'}: the number is not finite: send one that JSON and a double can hold"
            raise InvalidArgument("INVALID_NUMBER", message, field=path)
        elif isinstance(value, dict):
            for key, item in value.items():
                _check_text(path, key)
                pending.append((_below(path, key), item))
        elif isinstance(value, list):
            pending.extend((_below(path, str(n)), item) for n, item in enumerate(value))


def _below(path: str, part: str) -> str:
    # only names near the top help, and a path as long as its depth would cost its square
    return path if path.count(".") >= 5 else f"{path}.{part[:64]}" if path else part[:64]


def _check_text(path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{path or 'body'} holds half a surrogate pair: send whole Unicode characters"
        raise InvalidArgument("INVALID_TEXT", message, field=path) from None
