"""Who makes the call that is being answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from lorauter.access.scopes import Scope, allows
from lorauter.errors import PermissionDenied

PUBLIC_TENANT = "public"
"""Its pools are visible to all tenants."""

OPEN_SCOPES = frozenset({Scope.ADMIN})
"""What everybody may do where access is open."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a call is answered for. An empty ``key_id`` means that access is open.

    ``tenant`` is whose data it sees, beside what is public. ``any_tenant`` says that it may act for
    others. Limits are of a minute; 0 is none. ``expires`` is in seconds since 1970, None: never.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_id: str = ""
    any_tenant: bool = False
    expires: float | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def require(self, asked: Scope | None, call: str) -> None:
        """Raises PermissionDenied (SCOPE_MISSING) unless the key allows ``asked``; None is never allowed."""
        if asked is None or not allows(self.scopes, asked):
            held = ", ".join(sorted(self.scopes)) or "nothing"
            raise PermissionDenied(
                "SCOPE_MISSING",
                f"{call} needs a key with scope {asked or 'that nobody has'}; this one has {held}: "
                "ask for another key",
                scope=str(asked or ""),
            )

    def acting_for(self, tenant: str) -> Caller:
        """Returns this caller as one of ``tenant``; empty: its own.

        Raises PermissionDenied (TENANT_NOT_ALLOWED).
        """
        if not tenant or tenant == self.tenant:
            return self
        if not self.any_tenant:
            raise PermissionDenied(
                "TENANT_NOT_ALLOWED",
                "the key may not act for another tenant: leave tenant empty",
                field="tenant",
            )
        return replace(self, tenant=tenant)


_calling: ContextVar[Caller] = ContextVar("lorauter_caller")


def caller() -> Caller:
    """Returns who makes the call that is being answered; raises LookupError outside of one."""
    return _calling.get()


def calling(who: Caller) -> None:
    """Says who calls, for the rest of this task or thread."""
    _calling.set(who)


@contextmanager
def acting(who: Caller) -> Iterator[None]:
    """Says who calls inside."""
    token = _calling.set(who)
    try:
        yield
    finally:
        _calling.reset(token)
