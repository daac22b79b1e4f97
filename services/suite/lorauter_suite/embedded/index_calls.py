"""The part of Qdrant's REST interface that lorauter.index uses, as functions over a local client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient
from qdrant_client.http import models

Path = dict[str, Any]
Call = Callable[[QdrantClient, Path, bytes], Any]
"""Answers a request, given its path's parameters and its body, with what goes under ``result``.

Raises pydantic's ValidationError for a body of another form, and what the local client raises.
"""

_CREATE: TypeAdapter[models.CreateCollection] = TypeAdapter(models.CreateCollection)
_ALIASES: TypeAdapter[models.ChangeAliasesOperation] = TypeAdapter(models.ChangeAliasesOperation)
_INSERT: TypeAdapter[Any] = TypeAdapter(models.PointInsertOperations)
_IDS: TypeAdapter[models.PointRequest] = TypeAdapter(models.PointRequest)
_SCROLL: TypeAdapter[models.ScrollRequest] = TypeAdapter(models.ScrollRequest)
_QUERY: TypeAdapter[models.QueryRequest] = TypeAdapter(models.QueryRequest)
_QUERIES: TypeAdapter[models.QueryRequestBatch] = TypeAdapter(models.QueryRequestBatch)
_COUNT: TypeAdapter[models.CountRequest] = TypeAdapter(models.CountRequest)
_SELECTOR: TypeAdapter[Any] = TypeAdapter(models.PointsSelector)
_PAYLOAD: TypeAdapter[models.SetPayload] = TypeAdapter(models.SetPayload)
_FIELD: TypeAdapter[models.CreateFieldIndex] = TypeAdapter(models.CreateFieldIndex)


def list_collections(client: QdrantClient, path: Path, body: bytes) -> Any:
    """GET /collections."""
    return client.get_collections()


def get_collection(client: QdrantClient, path: Path, body: bytes) -> Any:
    """GET /collections/{name}."""
    return client.get_collection(path["name"])


def collection_exists(client: QdrantClient, path: Path, body: bytes) -> Any:
    """GET /collections/{name}/exists."""
    return {"exists": client.collection_exists(path["name"])}


def create_collection(client: QdrantClient, path: Path, body: bytes) -> Any:
    """PUT /collections/{name}; how a real server would store it is accepted and has no meaning here."""
    wanted = _CREATE.validate_json(body)
    return client.create_collection(
        path["name"], vectors_config=wanted.vectors, sparse_vectors_config=wanted.sparse_vectors
    )


def delete_collection(client: QdrantClient, path: Path, body: bytes) -> Any:
    """DELETE /collections/{name}: false if there is none."""
    return client.collection_exists(path["name"]) and client.delete_collection(path["name"])


def list_aliases(client: QdrantClient, path: Path, body: bytes) -> Any:
    """GET /aliases."""
    return client.get_aliases()


def list_collection_aliases(client: QdrantClient, path: Path, body: bytes) -> Any:
    """GET /collections/{name}/aliases."""
    return client.get_collection_aliases(path["name"])


def change_aliases(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/aliases: all actions or none."""
    return client.update_collection_aliases(_ALIASES.validate_json(body).actions)


def create_field_index(client: QdrantClient, path: Path, body: bytes) -> Any:
    """PUT /collections/{name}/index: the local client filters without one, so it is only checked."""
    client.get_collection(path["name"])
    _FIELD.validate_json(body)
    return _completed()


def upsert(client: QdrantClient, path: Path, body: bytes) -> Any:
    """PUT /collections/{name}/points; an existing point changes only if it matches ``update_filter``."""
    wanted = _INSERT.validate_json(body)
    points = wanted.batch if isinstance(wanted, models.PointsBatch) else wanted.points
    return client.upsert(
        path["name"], points, update_filter=wanted.update_filter, update_mode=wanted.update_mode
    )


def retrieve(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points: those of the ids that exist."""
    wanted = _IDS.validate_json(body)
    return client.retrieve(
        path["name"],
        wanted.ids,
        with_payload=True if wanted.with_payload is None else wanted.with_payload,
        with_vectors=wanted.with_vector or False,
    )


def scroll(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/scroll."""
    wanted = _SCROLL.validate_json(body)
    points, following = client.scroll(
        path["name"],
        scroll_filter=wanted.filter,
        limit=10 if wanted.limit is None else wanted.limit,
        order_by=wanted.order_by,
        offset=wanted.offset,
        with_payload=True if wanted.with_payload is None else wanted.with_payload,
        with_vectors=wanted.with_vector or False,
    )
    return {"points": points, "next_page_offset": following}


def query(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/query: exact search."""
    return _found(client, path["name"], _QUERY.validate_json(body))


def query_batch(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/query/batch: exact searches, answered in their order."""
    return [_found(client, path["name"], wanted) for wanted in _QUERIES.validate_json(body).searches]


def _found(client: QdrantClient, name: str, wanted: models.QueryRequest) -> Any:
    return client.query_points(
        name,
        query=wanted.query,
        using=wanted.using,
        prefetch=wanted.prefetch,
        query_filter=wanted.filter,
        limit=10 if wanted.limit is None else wanted.limit,
        offset=wanted.offset,
        with_payload=wanted.with_payload or False,
        with_vectors=wanted.with_vector or False,
        score_threshold=wanted.score_threshold,
    )


def count(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/count."""
    return client.count(path["name"], count_filter=_COUNT.validate_json(body).filter)


def delete(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/delete."""
    return client.delete(path["name"], _SELECTOR.validate_json(body))


def set_payload(client: QdrantClient, path: Path, body: bytes) -> Any:
    """POST /collections/{name}/points/payload."""
    wanted = _PAYLOAD.validate_json(body)
    chosen = wanted.filter or models.PointIdsList(points=wanted.points or [])
    return client.set_payload(path["name"], wanted.payload, points=chosen, key=wanted.key)


def _completed() -> models.UpdateResult:
    return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)


CALLS: tuple[tuple[str, str, Call], ...] = (
    ("GET", "/collections", list_collections),
    ("POST", "/collections/aliases", change_aliases),
    ("GET", "/aliases", list_aliases),
    ("GET", "/collections/{name}", get_collection),
    ("PUT", "/collections/{name}", create_collection),
    ("DELETE", "/collections/{name}", delete_collection),
    ("GET", "/collections/{name}/exists", collection_exists),
    ("GET", "/collections/{name}/aliases", list_collection_aliases),
    ("PUT", "/collections/{name}/index", create_field_index),
    ("PUT", "/collections/{name}/points", upsert),
    ("POST", "/collections/{name}/points", retrieve),
    ("POST", "/collections/{name}/points/scroll", scroll),
    ("POST", "/collections/{name}/points/query", query),
    ("POST", "/collections/{name}/points/query/batch", query_batch),
    ("POST", "/collections/{name}/points/count", count),
    ("POST", "/collections/{name}/points/delete", delete),
    ("POST", "/collections/{name}/points/payload", set_payload),
)
"""Method, path and answer of every call; the order decides where paths overlap."""
