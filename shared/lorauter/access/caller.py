"""Who makes the call that is being answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from lorauter.access.scopes import Scope, allows
from lorauter.errors import PermissionDenied
from lorauter.identifiers import check_id

PUBLIC_TENANT = "public"
"""Its pools are visible to all tenants."""

OPEN_SCOPES = frozenset({Scope.ADMIN})
"""What everybody may do where access is open."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a call is answered for. An empty ``key_id`` means that access is open.

    ``tenant`` is whose data it sees, beside what is public. ``any_tenant`` says that it may act for
    others; a ``guest`` acts for tenant `public` without that, in calls that are open to every tenant. Limits
    are of a minute; 0 is none. ``expires`` is in seconds since 1970, None: never.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_id: str = ""
    any_tenant: bool = False
    expires: float | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    guest: bool = False

    def require(self, asked: Scope | None, call: str, public: bool = False) -> None:
        """Returns if the key allows ``asked``; None is never allowed, and guests only what is ``public``.

        Raises PermissionDenied (SCOPE_MISSING, TENANT_NOT_ALLOWED).
        """
        if self.guest and not public and asked is not Scope.ANY:
            raise _not_allowed(f"the key may read what is public, but {call} is for its own tenant only")
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

        Raises PermissionDenied (TENANT_NOT_ALLOWED) or InvalidArgument (INVALID_ID).
        """
        if not tenant or tenant == self.tenant:
            return self
        if not self.any_tenant:
            raise _not_allowed("the key may not act for another tenant")
        return replace(self, tenant=check_id(tenant, "tenant"))

    def visiting(self, tenant: str) -> Caller:
        """Like acting_for(), but lets every caller be a guest of tenant `public`."""
        if tenant == PUBLIC_TENANT != self.tenant and not self.any_tenant:
            return replace(self, tenant=tenant, guest=True)
        return self.acting_for(tenant)


def open_caller(tenant: str) -> Caller:
    """Returns the caller that everybody is where access is open."""
    return Caller(tenant, OPEN_SCOPES, any_tenant=True)


def _not_allowed(why: str) -> PermissionDenied:
    return PermissionDenied("TENANT_NOT_ALLOWED", f"{why}: leave tenant empty", field="tenant")


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
