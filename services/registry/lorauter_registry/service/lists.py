"""Pages of lists: sorted by a key, and never longer than a client's message limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import tuple_
from sqlmodel import Session
from sqlmodel.sql.expression import SelectOfScalar

from lorauter_registry.domain.fields import PageRequest, Value
from lorauter_registry.domain.pages import decode_token, encode_token

R = TypeVar("R")
T = TypeVar("T", bound=Value)

MAX_PAGE_BYTES = 1024 * 1024
"""A page ends before it gets longer than this; a gRPC client takes 4 MiB unless told otherwise."""


def scope_of(tenant: str, request: PageRequest) -> str:
    """Names a list with its filters, so that a token is good for this list only."""
    filters = request.model_dump_json(exclude={"page_size", "page_token"})
    return f"{tenant}/{type(request).__name__}/{filters}"


def paginate(
    session: Session,
    statement: SelectOfScalar[R],
    tenant: str,
    request: PageRequest,
    columns: Sequence[Any],
    build: Callable[[Sequence[R]], Sequence[T]],
    newest_first: bool = False,
) -> tuple[tuple[T, ...], str]:
    """Returns the items that follow ``request.page_token``, and the token of the next page.

    ``columns`` are the sort key, unique in the list; ``build`` turns rows into items, one for each.
    Raises InvalidArgument (INVALID_PAGE_TOKEN).
    """
    scope = scope_of(tenant, request)
    if request.page_token:
        key = tuple_(*columns)
        after = tuple_(*decode_token(scope, request.page_token, [_kind(column) for column in columns]))
        statement = statement.where(key < after if newest_first else key > after)
    order = [column.desc() if newest_first else column for column in columns]
    rows = session.exec(statement.order_by(*order).limit(request.limit + 1)).all()
    items = _bounded(build(rows[: request.limit]))
    if len(items) == len(rows):
        return items, ""
    last = rows[len(items) - 1]
    return items, encode_token(scope, [getattr(last, column.key) for column in columns])


def _kind(column: Any) -> type:
    kind: type = column.type.python_type
    return kind if kind in (int, datetime) else str


def _bounded(items: Sequence[T]) -> tuple[T, ...]:
    size = 0
    for index, item in enumerate(items):
        size += len(item.model_dump_json().encode())
        if index and size > MAX_PAGE_BYTES:
            return tuple(items[:index])
    return tuple(items)
