"""Turns what a backend refuses or breaks into typed errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import TracebackType

import aiohttp

from lorauter.errors import (
    Exhausted,
    InvalidArgument,
    LorauterError,
    PayloadTooLarge,
    Unavailable,
    UnprocessableRequest,
)
from lorauter_gateway.ports import BackendFailed

Fault = LorauterError | BackendFailed

_TOO_LONG = re.compile(
    r"inputs.{0,40}(tokens|must)|prompt.{0,40}(too long|tokens)|context length|max_model_len", re.I | re.S
)
_STATUS_BY_TYPE = {
    "validation": 422,
    "template_error": 422,
    "missing_template_variable": 422,
    "tool_error": 422,
    "generation": 424,
    "overloaded": 429,
    "incomplete_generation": 500,
    "healthcheck": 503,
    "unhealthy": 503,
}
_MAX_MESSAGE = 2000
_MAX_RETRY_AFTER_SECONDS = 60.0
_UNREACHABLE = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_BROKE_OFF = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError, TimeoutError)
_NOT_OF_PROTOCOL = (
    aiohttp.ClientError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class translated:  # noqa: N801
    """A context that raises BackendFailed for what aiohttp and the parsers of answers raise inside it."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, _NOT_OF_PROTOCOL + _BROKE_OFF):
            raise _translation(error) from None


def _translation(error: BaseException) -> BackendFailed:
    if isinstance(error, _UNREACHABLE):
        reason, message = "BACKEND_UNREACHABLE", "the backend cannot be reached: retry in a moment"
    elif isinstance(error, _BROKE_OFF):
        reason, message = "BACKEND_BROKE_OFF", "the backend broke the connection off: retry in a moment"
    else:
        reason = "BACKEND_PROTOCOL"
        message = "the backend's answer is not of its protocol: check that it is of the registered kind"
    failed = Unavailable(reason, message, cause=type(error).__name__)
    return BackendFailed(failed, try_elsewhere=reason != "BACKEND_PROTOCOL", is_fault=True)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Fault:
    """Returns the error for an answer with a ``status`` other than 200."""
    message, error_type, reason = _read(body)
    return _fault(status, message or f"the backend answered {status}", error_type, reason, headers)


def event_fault(event: Mapping[str, object]) -> Fault:
    """Returns the error for an error event in a stream, whose HTTP status was 200."""
    message, error_type, reason = _parts(event)
    nested = event.get("error")
    told = (nested.get("http_status_code") or nested.get("code")) if isinstance(nested, dict) else None
    known = _STATUS_BY_TYPE.get(error_type, 500)
    return _fault(told if isinstance(told, int) else known, message, error_type, reason, {})


def _fault(status: int, message: str, error_type: str, reason: str, headers: Mapping[str, str]) -> Fault:
    if status == 429:
        return full(message, headers)
    if status in (502, 503):
        error = Unavailable("BACKEND_UNAVAILABLE", f"the backend cannot work now: {message}")
        return BackendFailed(error, try_elsewhere=True, is_fault=True)
    if status == 424 or error_type == "generation":
        error = Unavailable("GENERATION_FAILED", f"the backend failed to generate: {message}")
        return BackendFailed(error, is_fault=True)
    if status == 413:
        return PayloadTooLarge("BODY_TOO_LARGE", message)
    if status in (401, 403):
        said = f"the backend answered {status} to the gateway's key: check LORAUTER_BACKEND_KEY"
        return BackendFailed(Unavailable("BACKEND_KEY_REFUSED", said), try_elsewhere=True, is_fault=True)
    if status in (404, 405):
        error = Unavailable("BACKEND_FAILED", f"the backend does not serve this: it answered {status}")
        return BackendFailed(error, try_elsewhere=True, is_fault=True)
    if not 400 <= status < 500:
        error = Unavailable("BACKEND_FAILED", f"the backend failed with status {status}")
        return BackendFailed(error, is_fault=True)
    if reason.startswith("ADAPTER_"):
        return not_servable(message)
    if _TOO_LONG.search(message):
        return UnprocessableRequest(reason or "PROMPT_TOO_LONG", message)
    refused = UnprocessableRequest if status == 422 else InvalidArgument
    return refused(reason or "REFUSED_BY_BACKEND", message)


def full(message: str, headers: Mapping[str, str]) -> BackendFailed:
    """Returns the error for a backend that takes no more requests; it may say for how long."""
    seconds = _retry_after(headers.get("retry-after"))
    error = Exhausted(
        "BACKEND_OVERLOADED", f"the backend is full: {message}", retry_after_seconds=str(math.ceil(seconds))
    )
    return BackendFailed(error, try_elsewhere=True, retry_after_seconds=seconds)


def not_servable(message: str) -> BackendFailed:
    """Returns the error for a backend that lacks what a decision names: callers never name digests."""
    error = Unavailable("ADAPTER_NOT_SERVABLE", f"the backend cannot serve a routed adapter: {message}")
    return BackendFailed(error, try_elsewhere=True, is_missing=True)


def unfinished() -> BackendFailed:
    """Returns the error for a stream that ends before the answer does."""
    error = Unavailable("STREAM_BROKEN", "the backend's stream ended before the answer did: ask again")
    return BackendFailed(error, try_elsewhere=True, is_fault=True)


def broken(fault: Fault) -> BackendFailed:
    """Returns the error for a stream that failed after its first piece, which is tried nowhere else."""
    is_fault = isinstance(fault, BackendFailed) and fault.is_fault
    message = fault.error.message if isinstance(fault, BackendFailed) else fault.message
    return BackendFailed(
        Unavailable("STREAM_BROKEN", f"the answer broke off: {message}"),
        is_fault=is_fault,
        retry_after_seconds=fault.retry_after_seconds if isinstance(fault, BackendFailed) else None,
    )


def unsupported(field: str, kind: str) -> InvalidArgument:
    """Returns the error for a parameter that a kind of backend cannot honour."""
    message = f"parameters.{field[:80]}: {kind} backends cannot do that; leave it out"
    return InvalidArgument("UNSUPPORTED_FIELD", message, field=f"parameters.{field[:80]}")


def error_parts(body: bytes) -> tuple[str, str]:
    """Returns the message and the type in the body of an error, empty where it has none."""
    return _read(body)[:2]


def _retry_after(told: str | None) -> float:
    try:
        seconds = float(told or 1)
    except ValueError:
        return 1.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 1.0


def _read(body: bytes) -> tuple[str, str, str]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return "", "", ""
    return _parts(parsed) if isinstance(parsed, dict) else ("", "", "")


def _parts(body: Mapping[str, object]) -> tuple[str, str, str]:
    error = body.get("error")
    if isinstance(error, dict):
        kind, reason = error.get("type") or error.get("error_type"), error.get("reason") or error.get("code")
        return str(error.get("message", ""))[:_MAX_MESSAGE], str(kind or ""), _as_reason(reason)
    message = str(error or "")[:_MAX_MESSAGE]
    return message, str(body.get("error_type") or ""), _as_reason(body.get("reason"))


def _as_reason(value: object) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", value) else ""
