"""Page tokens: opaque to callers, bound to the list and the filters that they were made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from lorauter.errors import InvalidArgument

Key = Sequence[str | int | datetime]
"""The columns by which a list is sorted, of the last item of a page."""

_CHECK_BYTES = 9


def encode_token(scope: str, key: Key) -> str:
    """Returns a token for the page after ``key``; ``scope`` names the list with its filters."""
    parts = [part.astimezone(UTC).isoformat() if isinstance(part, datetime) else part for part in key]
    body = json.dumps(parts, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_check(scope, body) + body).decode().rstrip("=")


def decode_token(scope: str, token: str, kinds: Sequence[type]) -> list[Any]:
    """Returns the key in ``token``, its columns being of ``kinds``.

    Raises InvalidArgument (INVALID_PAGE_TOKEN) for a token that this list did not give out.
    """
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
        if check != _check(scope, body):
            raise _invalid()
        parts = json.loads(body)
        return [_restore(part, kind) for part, kind in zip(parts, kinds, strict=True)]
    except (binascii.Error, ValueError, TypeError, OverflowError):
        raise _invalid() from None


def _restore(part: Any, kind: type) -> Any:
    if kind is datetime:
        return datetime.fromisoformat(part).astimezone(UTC)
    if type(part) is not kind or (isinstance(part, str) and "\x00" in part):
        raise _invalid()
    if isinstance(part, int) and not 0 <= part < 2**31:
        raise _invalid()
    return part


def _check(scope: str, body: bytes) -> bytes:
    return hashlib.blake2b(
        body, digest_size=_CHECK_BYTES, key=hashlib.sha256(scope.encode()).digest()
    ).digest()


def _invalid() -> InvalidArgument:
    return InvalidArgument(
        "INVALID_PAGE_TOKEN",
        "page_token is not one that this list returned for these filters: begin without it",
        field="page_token",
    )
