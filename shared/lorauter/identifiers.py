"""Names that callers choose, and generations, which they only compare for equality."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from hashlib import blake2b as Blake2b  # noqa: N812

from lorauter.errors import InvalidArgument

BASE = "base"
"""The id of the bare model, which is always an arm."""

COMPOSITE_PREFIX = "mix-"
"""Every composite's name begins with this."""

RESERVED_ADAPTER_IDS = frozenset({"auto", BASE, "tgi", "dummy"})

_HALF = 0xFFFF_FFFF
_GENERATION_BITS = 40
"""What a number has at most; the other bits of a token tell another tenant's but for one in 2^24."""

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


@lru_cache(maxsize=4096)
def encode_generation(value: int, tenant: str) -> str:
    """Returns the opaque form of a tenant's generation: neither its number nor its order shows.

    No secret is in it: it keeps callers from comparing tenants' tokens, and services from mistaking them.
    """
    left, right = value >> 32, value & _HALF
    for keyed in _rounds(tenant):
        left, right = right, left ^ _mixed(keyed, right)
    return f"g{left << 32 | right:016x}"


def decode_generation(token: str, tenant: str, field: str = "min_generation") -> int:
    """Returns the number behind a tenant's opaque generation.

    Raises InvalidArgument: INVALID_GENERATION, and FOREIGN_GENERATION for one that is not this tenant's.
    """
    if not re.fullmatch(r"g[0-9a-f]{16}", token):
        raise InvalidArgument(
            "INVALID_GENERATION",
            f"{field} {token[:40]!r} is not a generation: pass one that a registry call returned",
            field=field,
        )
    whole = int(token[1:], 16)
    left, right = whole >> 32, whole & _HALF
    for keyed in reversed(_rounds(tenant)):
        left, right = right ^ _mixed(keyed, left), left
    if left >> (_GENERATION_BITS - 32):
        raise foreign_generation(field)
    return left << 32 | right


def foreign_generation(field: str = "min_generation") -> InvalidArgument:
    """Returns the error for a generation of another tenant than the pool's."""
    return InvalidArgument(
        "FOREIGN_GENERATION",
        f"{field} is not a generation of the tenant whose pool this is: leave it empty, or pass one that "
        "the registry returned for that tenant",
        field=field,
    )


@lru_cache(maxsize=1024)
def _rounds(tenant: str) -> tuple[Blake2b, ...]:
    """Returns the keyed hashes of a balanced Feistel network (Luby and Rackoff 1988) of four rounds."""
    key = hashlib.blake2b(f"lorauter.generation:{tenant}".encode(), digest_size=32).digest()
    return tuple(hashlib.blake2b(bytes([number]), digest_size=4, key=key) for number in range(4))


def _mixed(keyed: Blake2b, half: int) -> int:
    hashed = keyed.copy()
    hashed.update(half.to_bytes(4))
    return int.from_bytes(hashed.digest())
