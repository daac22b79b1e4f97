"""The registry over REST: resources as JSON, errors as problem+json, OpenAPI at /openapi.json."""

from lorauter_registry.api.rest.app import create_rest

__all__ = ["create_rest"]
