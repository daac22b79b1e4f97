"""Names and layout of Qdrant's collections, and the calls that every user of them shares."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from lorauter.errors import Unavailable
from lorauter.index.codec import SCHEMA_VERSION

DENSE = "dense"
"""The dense vector: raw centroids in tasks, unit vectors in examples."""

LEXICAL = "lexical"
"""The sparse vector of tasks: raw term frequencies by 32-bit token hash."""

ID_BATCH = 1_000
"""Points per call where only ids travel."""

POINT_BATCH = 256
"""Points per call where vectors travel: about 2 MB of JSON at 384 dimensions, under Qdrant's 32 MB."""


@dataclass(frozen=True, slots=True)
class Collections:
    """The collections of an encoder, by role. Another encoder has its own tasks and examples."""

    prefix: str
    tasks: str
    examples: str
    profiles: str

    @classmethod
    def of(cls, prefix: str, encoder_digest: str) -> Collections:
        """Returns the names for an encoder digest, ``sha256:<hex>`` or bare hex."""
        short = encoder_digest.removeprefix("sha256:")[:12]
        end = f"v{SCHEMA_VERSION}"
        return cls(
            prefix=prefix,
            tasks=f"{prefix}lorauter-tasks-{short}-{end}",
            examples=f"{prefix}lorauter-examples-{short}-{end}",
            profiles=profiles_collection(prefix),
        )


def profiles_collection(prefix: str) -> str:
    """Returns the collection of roots and markers, which hold no vectors and know no encoder."""
    return f"{prefix}lorauter-profiles-v{SCHEMA_VERSION}"


def of_encoders(client: QdrantClient, prefix: str) -> set[str]:
    """Returns the collections of tasks and examples, of whatever encoder, that exist in this layout."""
    names = (collection.name for collection in client.get_collections().collections)
    begins = (f"{prefix}lorauter-tasks-", f"{prefix}lorauter-examples-")
    return {name for name in names if name.startswith(begins) and name.endswith(f"-v{SCHEMA_VERSION}")}


@contextmanager
def reachable() -> Iterator[None]:
    """Turns every failure of a call into Unavailable (INDEX_UNAVAILABLE)."""
    try:
        yield
    except UnexpectedResponse as error:
        raise _unavailable(f"answered {error.status_code}") from error
    except (ApiException, httpx.HTTPError, OSError) as error:
        raise _unavailable(type(error).__name__) from error
    except ValueError as error:  # local mode's form of a refusal
        raise _unavailable(str(error)[:200]) from error


def is_absent(error: Unavailable) -> bool:
    """Whether the failure was that a collection does not exist, as in a new or wiped index."""
    cause = error.__cause__
    if isinstance(cause, UnexpectedResponse):
        return cause.status_code == 404
    return isinstance(cause, ValueError) and "not found" in str(cause)


def ensure(client: QdrantClient, names: Collections, dimension: int | None) -> None:
    """Creates what is missing; without a dimension only the collection of roots and markers."""
    keyword = models.PayloadSchemaType.KEYWORD
    if not client.collection_exists(names.profiles):
        _create(client, names.profiles, {}, {}, {"kind": keyword})
    if dimension is None:
        return
    dense = {DENSE: models.VectorParams(size=dimension, distance=models.Distance.DOT)}
    if not client.collection_exists(names.tasks):
        searched = {"pool": keyword, "tags": keyword, "task_id": keyword}
        _create(client, names.tasks, dense, {LEXICAL: models.SparseVectorParams()}, searched)
    if not client.collection_exists(names.examples):
        _create(client, names.examples, dense, {}, {"set": keyword})


def point_aliases(client: QdrantClient, prefix: str, names: Collections) -> None:
    """Lets the aliases ``tasks``, ``examples`` and ``profiles`` name these collections, in one step."""
    wanted = {"tasks": names.tasks, "examples": names.examples, "profiles": names.profiles}
    held = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
    changes: list[models.AliasOperations] = []
    for role, collection in wanted.items():
        alias = prefix + role
        if held.get(alias) == collection or not client.collection_exists(collection):
            continue
        if alias in held:
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        changes.append(models.CreateAliasOperation(create_alias=create))
    if changes:
        client.update_collection_aliases(changes)


def present(client: QdrantClient, collection: str, ids: Sequence[str]) -> set[str]:
    """Returns which of the points exist."""
    found: set[str] = set()
    for batch in in_batches(ids, ID_BATCH):
        records = client.retrieve(collection, batch, with_payload=False, with_vectors=False)
        found.update(str(record.id) for record in records)
    return found


def in_batches(ids: Sequence[str], size: int) -> Iterator[list[models.ExtendedPointId]]:
    """Yields the ids in lists of at most ``size``."""
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])


def _create(
    client: QdrantClient,
    name: str,
    vectors: dict[str, models.VectorParams],
    sparse: dict[str, models.SparseVectorParams],
    indexed: dict[str, models.PayloadSchemaType],
) -> None:
    try:
        client.create_collection(name, vectors_config=vectors, sparse_vectors_config=sparse)
    except (UnexpectedResponse, ValueError):
        if not client.collection_exists(name):  # else somebody else was faster
            raise
    fields = {
        "tenant": models.PayloadSchemaType.KEYWORD,
        "generation": models.PayloadSchemaType.INTEGER,
        **indexed,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # local mode says that it needs no indexes
        for field, schema in fields.items():
            client.create_payload_index(name, field, field_schema=schema, wait=True)


def _unavailable(what: str) -> Unavailable:
    return Unavailable("INDEX_UNAVAILABLE", f"the index {what}: check that QDRANT_URL names a running Qdrant")
