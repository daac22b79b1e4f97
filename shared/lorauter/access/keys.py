"""API keys: `lra_<id>_<secret>`. Services keep and compare digests only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

_ID_BYTES = 8
_SECRET_BYTES = 32
_FORM = re.compile(r"lra_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Presented:
    """A key that somebody presents: its id, and the SHA-256 digest of the whole key, 32 bytes.

    A fast hash is enough, because a secret has 256 random bits: nobody can try them all.
    """

    id: str
    digest: bytes = field(repr=False)

    def matches(self, digest: bytes) -> bool:
        """Returns whether this is the key of ``digest``, in a time that does not tell how alike they are."""
        return hmac.compare_digest(self.digest, digest)


def make_key() -> str:
    """Returns a new key."""
    return f"lra_{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def read_key(text: str) -> Presented | None:
    """Returns the key that ``text`` is, or None if it has another form."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    return Presented(found[1], hashlib.sha256(text.encode()).digest())
