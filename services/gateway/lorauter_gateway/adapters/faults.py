"""Turns what a backend that speaks TGI's protocol refuses or breaks into typed errors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from lorauter.errors import (
    Exhausted,
    InvalidArgument,
    LorauterError,
    PayloadTooLarge,
    Unavailable,
    UnprocessableRequest,
)
from lorauter_gateway.ports import BackendFailed

_TOO_LONG = re.compile(
    r"inputs.{0,40}(tokens|must)|prompt.{0,40}(too long|tokens)|context length", re.I | re.S
)
_STATUS_BY_TYPE = {
    "validation": 422,
    "generation": 424,
    "overloaded": 429,
    "incomplete_generation": 500,
    "healthcheck": 503,
    "unhealthy": 503,
}


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Raises BackendFailed for what httpx and the parsers raise inside the block."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        message = "the backend cannot be reached: retry in a moment"
        raise _failed("BACKEND_UNREACHABLE", message, error, try_elsewhere=True, is_down=True) from None
    except httpx.TransportError as error:
        message = "the backend broke the connection off: retry in a moment"
        raise _failed("BACKEND_BROKE_OFF", message, error, try_elsewhere=True, is_down=True) from None
    except (KeyError, TypeError, ValueError, httpx.HTTPError) as error:
        message = "the backend's answer is not of its protocol: check that it is of the registered kind"
        raise _failed("BACKEND_PROTOCOL", message, error) from None


def _failed(reason: str, message: str, cause: Exception, **flags: bool) -> BackendFailed:
    return BackendFailed(Unavailable(reason, message, cause=type(cause).__name__), **flags)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> LorauterError | BackendFailed:
    """Returns the error for an answer with ``status`` of 400 or more."""
    message, error_type, reason = _read(body)
    return _fault(status, message or f"the backend answered {status}", error_type, reason, headers)


def event_fault(event: Mapping[str, object]) -> LorauterError | BackendFailed:
    """Returns the error for an error event in a stream, whose HTTP status was 200."""
    message, error_type, reason = _parts(event)
    nested = event.get("error")
    status = nested.get("http_status_code") if isinstance(nested, dict) else None
    known = _STATUS_BY_TYPE.get(error_type, 500)
    return _fault(status if isinstance(status, int) else known, message, error_type, reason, {})


def _fault(
    status: int, message: str, error_type: str, reason: str, headers: Mapping[str, str]
) -> LorauterError | BackendFailed:
    if status == 429:
        seconds = headers.get("retry-after", "1")
        full = Exhausted("BACKEND_OVERLOADED", f"the backend is full: {message}", retry_after_seconds=seconds)
        return BackendFailed(full, try_elsewhere=True)
    if status == 503:
        unavailable = Unavailable("BACKEND_UNAVAILABLE", f"the backend cannot work now: {message}")
        return BackendFailed(unavailable, try_elsewhere=True, is_down=True)
    if status == 424 or error_type == "generation":
        return BackendFailed(Unavailable("GENERATION_FAILED", f"the backend failed to generate: {message}"))
    if status == 413:
        return PayloadTooLarge("BODY_TOO_LARGE", message)
    if status in (401, 403, 404, 405) or status >= 500:
        return BackendFailed(Unavailable("BACKEND_FAILED", f"the backend failed with status {status}"))
    if reason.startswith("ADAPTER_"):
        # callers never name digests: the set came from the router, so the backend lacks what it should have
        error = Unavailable("ADAPTER_NOT_SERVABLE", f"the backend cannot serve a routed adapter: {message}")
        return BackendFailed(error, try_elsewhere=True)
    if _TOO_LONG.search(message):
        return UnprocessableRequest(reason or "PROMPT_TOO_LONG", message)
    refused = UnprocessableRequest if status == 422 else InvalidArgument
    return refused(reason or "REFUSED_BY_BACKEND", message)


def _read(body: bytes) -> tuple[str, str, str]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return "", "", ""
    return _parts(parsed) if isinstance(parsed, dict) else ("", "", "")


def _parts(body: Mapping[str, object]) -> tuple[str, str, str]:
    error = body.get("error")
    if isinstance(error, dict):
        kind, reason = error.get("type") or error.get("error_type"), error.get("reason") or error.get("code")
        return str(error.get("message", "")), str(kind or ""), _as_reason(reason)
    return str(error or ""), str(body.get("error_type") or ""), _as_reason(body.get("reason"))


def _as_reason(value: object) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", value) else ""
