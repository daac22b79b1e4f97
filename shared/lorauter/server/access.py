"""Lets callers in by their keys, over gRPC and HTTP alike; the middleware is in `http`, beside its like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter

from lorauter.access import (
    Caller,
    Presented,
    Scope,
    calling,
    is_public,
    open_caller,
    read_key,
    scope_of,
)
from lorauter.errors import LorauterError, Unauthenticated
from lorauter.server.handlers import inner_of, rewrapped
from lorauter.settings import AccessSettings
from lorauter.telemetry import get_logger

KEY_HEADER = "authorization"
TENANT_HEADER = "x-lorauter-tenant"
OPEN_PATHS = frozenset({"/", "/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})
"""What needs no key over HTTP: probes, Prometheus, and the description of the API."""

OPEN_SERVICES = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})
"""What needs no key over gRPC."""

DENIED = Counter("lorauter_access_denied_total", "Calls refused for their key, by reason", ["reason"])

_audit = get_logger("lorauter.audit")
_log = get_logger(__name__)


class Gate(Protocol):
    """Tells who calls."""

    async def admit(self, authorization: str) -> Caller:
        """Returns the caller who sent this authorization header or metadata, which may be empty.

        Raises Unauthenticated (KEY_MISSING, KEY_MALFORMED, KEY_INVALID, KEY_EXPIRED, KEY_REVOKED),
        Unavailable (KEYS_UNAVAILABLE) where it cannot be told, Exhausted (TOO_MANY_KEYS).
        """
        ...


class OpenGate:
    """Lets everybody do everything, as one tenant; what they send as a key is not looked at."""

    def __init__(self, tenant: str) -> None:
        self._caller = open_caller(tenant)

    async def admit(self, authorization: str) -> Caller:
        """See Gate."""
        return self._caller


def open_gate(settings: AccessSettings) -> OpenGate:
    """Returns the gate of a service whose access is open; warns where others than this machine reach it."""
    if not _is_loopback(settings.host):
        _log.warning(
            "access.open",
            host=settings.host,
            advice="everybody who reaches this address may do everything: unset LORAUTER_ACCESS or listen "
            "on 127.0.0.1",
        )
    return OpenGate(settings.tenant)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def presented_in(authorization: str) -> Presented:
    """Returns the key in an authorization header; raises Unauthenticated (KEY_MISSING, KEY_MALFORMED)."""
    if not authorization:
        raise Unauthenticated("KEY_MISSING", "this needs a key: send `authorization: Bearer lra_...`")
    kind, _, text = authorization.partition(" ")
    presented = read_key(text.strip()) if kind.lower() == "bearer" else None
    if presented is None:
        raise Unauthenticated(
            "KEY_MALFORMED", "the authorization is no lorauter key: send `Bearer lra_...` as it was given out"
        )
    return presented


def access_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns what says who calls, of a call's headers or metadata with names in lower case.

    A name that comes twice has both values, as RFC 9110 joins them, which no key and no tenant looks like:
    so nothing in front of us can have checked another one than we do.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in (KEY_HEADER, TENANT_HEADER):
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def denied(error: LorauterError, call: str, who: Caller | None = None) -> None:
    """Writes a refusal into the audit log, and counts it."""
    DENIED.labels(error.reason).inc()
    key_id, tenant = (who.key_id, who.tenant) if who else ("", "")
    _audit.warning("audit.denied", call=call, reason=error.reason, key_id=key_id, tenant=tenant)


class GrpcAccess(grpc.aio.ServerInterceptor):
    """Lets through what the caller's key allows, by the options of the methods; health and reflection always.

    A method without an option is refused, and every method of a service that is not in ``services``. It runs
    inside of ErrorInterceptor.
    """

    def __init__(self, gate: Gate, services: Mapping[str, ServiceDescriptor]) -> None:
        """``services`` are by full name; more may be added until the server starts."""
        self._gate = gate
        self._services = services
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        service, _, method = path.lstrip("/").partition("/")
        if handler is None or service in OPEN_SERVICES:
            return handler
        known, guarded = self._guarded.get(path, (None, None))
        if known is not handler:
            known_service = self._services.get(service)
            asked = scope_of(known_service, method) if known_service else None
            public = known_service is not None and is_public(known_service, method)
            guarded = self._guard(handler, path, asked, public)
            self._guarded[path] = (handler, guarded)
        return guarded

    def _guard(self, handler: Any, path: str, asked: Scope | None, public: bool) -> Any:
        async def enter(context: Any) -> None:
            headers = access_headers(context.invocation_metadata() or ())
            await enter_as(self._gate, headers, asked, path, public)

        inner = inner_of(handler)

        async def answer(request: Any, context: Any) -> Any:
            await enter(context)
            return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await enter(context)
            async for response in inner(request, context):
                yield response

        guard = stream if handler.response_streaming else answer
        return rewrapped(handler, guard, handler.request_deserializer)


async def enter_as(
    gate: Gate, headers: Mapping[str, str], asked: Scope | None, call: str, public: bool = False
) -> Caller:
    """Returns the caller by access_headers(), and makes it the one of this task.

    What is refused is written into the audit log. Raises as Gate.admit, Caller.visiting and Caller.require.
    """
    who = None
    try:
        who = await gate.admit(headers.get(KEY_HEADER, ""))
        who = who.visiting(headers.get(TENANT_HEADER, ""))
        who.require(asked, call, public)
    except LorauterError as error:
        denied(error, call, who)
        raise
    calling(who)
    return who
