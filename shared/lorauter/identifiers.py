"""Names that callers choose, and generations, which they only compare for equality."""

from __future__ import annotations

import re

from lorauter.errors import InvalidArgument

BASE = "base"
"""The id of the bare model, which is always an arm."""

COMPOSITE_PREFIX = "mix-"
"""Every composite's name begins with this."""

RESERVED_ADAPTER_IDS = frozenset({"auto", BASE, "tgi", "dummy"})

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_id(value: str, field: str) -> str:
    """Returns ``value`` if it can name a resource, else raises InvalidArgument (INVALID_ID)."""
    if not _ID.fullmatch(value):
        raise InvalidArgument(
            "INVALID_ID",
            f"{field} {value[:80]!r} is not an id: use 1 to 63 characters of a-z, 0-9, '.', '_', '-', "
            "beginning with a letter or digit",
            field=field,
        )
    return value


def check_adapter_id(value: str, field: str = "id") -> str:
    """Like check_id, and refuses reserved names (RESERVED_ID)."""
    check_id(value, field)
    if value in RESERVED_ADAPTER_IDS or value.startswith(COMPOSITE_PREFIX):
        raise InvalidArgument("RESERVED_ID", f"{field} {value!r} is reserved: choose another id", field=field)
    return value


def backend_name(digest: str) -> str:
    """Returns the name of an adapter's folder in the adapter store: the 64 hex digits of its digest.

    Servers know the adapter by it. ``digest`` may lack its ``sha256:``. Raises InvalidArgument
    (INVALID_DIGEST).
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidArgument(
            "INVALID_DIGEST", f"{digest[:80]!r} is not an adapter's digest: sha256: and 64 hex digits"
        )
    return match[1]


def encode_generation(value: int) -> str:
    """Returns the opaque form of a generation. Its lexical order is the generations' order."""
    return f"g{value:016x}"


def decode_generation(token: str, field: str = "min_generation") -> int:
    """Returns the number behind an opaque generation; raises InvalidArgument (INVALID_GENERATION)."""
    if not re.fullmatch(r"g[0-9a-f]{16}", token):
        raise InvalidArgument(
            "INVALID_GENERATION",
            f"{field} {token[:40]!r} is not a generation: pass one that a registry call returned",
            field=field,
        )
    return int(token[1:], 16)
