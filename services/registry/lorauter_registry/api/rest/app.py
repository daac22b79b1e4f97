"""The registry's HTTP application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from lorauter.errors import LorauterError
from lorauter.server.access import Gate
from lorauter.server.http import create_app
from lorauter_registry.api.calls import Calls
from lorauter_registry.api.rest import (
    adapters,
    affinities,
    decisions,
    keys,
    manifests,
    operations,
    pools,
    tasks,
)
from lorauter_registry.api.rest.http import Problem
from lorauter_registry.domain.affinity_requests import MAX_IMPORT_BYTES, ImportAffinities


def create_rest(calls: Calls, max_body_bytes: int, max_validation_set_bytes: int, gate: Gate) -> FastAPI:
    """Returns the application; validation sets and imports may be larger than other bodies.

    ``gate`` is asked for a good key, and Calls for its scopes.
    """

    def limit(path: str) -> int:
        if path.endswith("/validation-set"):
            return max_validation_set_bytes
        return max(max_body_bytes, MAX_IMPORT_BYTES) if path == "/v1/affinities" else max_body_bytes

    async def readiness() -> str:
        try:
            await calls.ping()
        except LorauterError as error:
            return error.message
        return ""

    app = create_app("lorauter registry", readiness, limit, gate=gate)
    app.state.calls = calls
    app.state.max_validation_set_bytes = max_validation_set_bytes
    for part in (pools, manifests, tasks, adapters, affinities, operations, decisions, keys):
        app.include_router(part.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns the document; every error is a problem, never FastAPI's own 422."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (Problem, ImportAffinities):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        error = {
            "description": "What was wrong, and what to do.",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = error
        app.openapi_schema = document
    return app.openapi_schema
