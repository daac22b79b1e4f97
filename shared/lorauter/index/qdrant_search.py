"""Searches tasks in Qdrant: several searches in one call."""

from __future__ import annotations

from qdrant_client import QdrantClient, models

from lorauter.index.collections import DENSE, LEXICAL
from lorauter.index.port import Search
from lorauter.index.qdrant_writer import match_any, of_tenant


def search_tasks(client: QdrantClient, collection: str, wanted: Search) -> frozenset[tuple[str, str]]:
    """Returns the tasks that are found, by id and address. Raises what the client raises."""
    requests = [_request(vector.astype(float).tolist(), DENSE, wanted) for vector in wanted.probe.dense]
    terms = wanted.probe.terms
    if terms:
        sparse = models.SparseVector(indices=terms.ids.tolist(), values=terms.counts.tolist())
        requests.append(_request(sparse, LEXICAL, wanted))
    answers = client.query_batch_points(collection, requests)
    found = (point for answer in answers for point in answer.points)
    return frozenset((str((point.payload or {})["task_id"]), str(point.id)) for point in found)


def _request(query: list[float] | models.SparseVector, using: str, wanted: Search) -> models.QueryRequest:
    must: list[models.Condition] = [of_tenant(wanted.tenant), _holds("pool", wanted.pool_id)]
    must += [_holds("tags", tag) for tag in sorted(wanted.tags)]
    excluded = sorted(wanted.exclude_tasks)
    return models.QueryRequest(
        query=query,
        using=using,
        filter=models.Filter(must=must, must_not=[match_any("task_id", excluded)] if excluded else None),
        limit=wanted.limit,
        with_payload=["task_id"],
    )


def _holds(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
