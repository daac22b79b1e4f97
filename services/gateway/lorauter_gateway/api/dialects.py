"""Writes an error in the dialect of the route that it happened on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response

from lorauter.errors import LorauterError
from lorauter.server.http import problem, retry_headers
from lorauter_gateway import metrics
from lorauter_gateway.api.streams import event, tgi_event

_TGI_PATHS = frozenset({"/", "/generate", "/generate_stream", "/info", "/health"})
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "QUOTA_EXCEEDED": "rate_limit_exceeded",
    "KEY_MISSING": "invalid_api_key",
    "KEY_MALFORMED": "invalid_api_key",
    "KEY_INVALID": "invalid_api_key",
    "KEY_EXPIRED": "invalid_api_key",
    "KEY_REVOKED": "invalid_api_key",
}
_LIMIT_HEADERS = "x-ratelimit-"
_MODEL_REASONS = frozenset({"UNKNOWN_MODEL", "UNKNOWN_ADAPTER", "UNKNOWN_ADAPTER_VERSION", "UNKNOWN_POOL"})
_TGI_FAULTS = {
    "GENERATION_FAILED": (424, "generation"),
    "STREAM_BROKEN": (500, "incomplete_generation"),
    "NOT_READY": (503, "healthcheck"),
}
_TGI_TYPES = {429: "overloaded", 503: "unavailable", 504: "timeout"}
_OWN_STATUS = frozenset({400, 401, 403, 405, 413})


def dialect(path: str) -> str:
    """Returns ``tgi``, ``openai`` or ``problem``."""
    if path in _TGI_PATHS:
        return "tgi"
    return "openai" if path.startswith("/v1/") and path != "/v1/route" else "problem"


def render(status: int, reason: str, message: str, metadata: Mapping[str, Any] | None, path: str) -> Response:
    """Implements lorauter.server.http.Renderer."""
    spoken = dialect(path)
    metrics.HTTP_ERRORS.labels(spoken, reason).inc()
    limits = {name: value for name, value in (metadata or {}).items() if name.startswith(_LIMIT_HEADERS)}
    headers = {**retry_headers(metadata), **limits}
    if spoken == "openai":
        body = openai_error(status, reason, message, metadata)
        return JSONResponse(body, openai_status(status, reason), headers)
    if spoken == "tgi":
        tgi_status, error_type = tgi_fault(status, reason)
        return JSONResponse({"error": message, "error_type": error_type}, tgi_status, headers)
    answer = problem(status, reason, message, metadata, path)
    answer.headers.update(limits)
    return answer


def openai_status(status: int, reason: str) -> int:
    """Returns the status as OpenAI has it: a bad value is 400, an unknown model 404."""
    if reason in _MODEL_REASONS:
        return 404
    return 400 if status == 422 else status


def openai_error(
    status: int, reason: str, message: str, metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns OpenAI's error body; ``code`` is the reason in lower case where OpenAI has no name for it."""
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = "model" if reason in _MODEL_REASONS else (metadata or {}).get("field") or None
    code = "model_not_found" if reason in _MODEL_REASONS else _OPENAI_CODES.get(reason, reason.lower())
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def tgi_fault(status: int, reason: str) -> tuple[int, str]:
    """Returns TGI's status and error_type: a caller's fault is 422 ``validation``."""
    if reason in _TGI_FAULTS:
        return _TGI_FAULTS[reason]
    if status in _TGI_TYPES:
        return status, _TGI_TYPES[status]
    if status >= 500:
        return status, "internal"
    keeps = status in _OWN_STATUS and reason in ("MALFORMED_JSON", "METHOD_NOT_ALLOWED", "BODY_TOO_LARGE")
    return (status if keeps or status in (401, 403) else 422), "validation"


def openai_error_event(error: LorauterError) -> str:
    """Returns the event that ends a broken stream in OpenAI's dialect."""
    return event(openai_error(error.http_status, error.reason, error.message, error.metadata))


def tgi_error_event(error: LorauterError) -> str:
    """Returns the event that ends a broken stream in TGI's dialect."""
    kind = tgi_fault(error.http_status, error.reason)[1]
    return tgi_event({"error": error.message, "error_type": kind})
