"""Vectors of texts, encoded once and kept in PostgreSQL by encoder and content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from lorauter import tracing
from lorauter.encoder import Encoder
from lorauter.failpoints import reach
from lorauter.routing.model import Vector
from lorauter.store.tables import CachedEmbedding
from lorauter_worker import telemetry

_READ_BATCH = 1_000
_ENCODE_BATCH = 128
"""Texts that are encoded and stored at a time: what a kill can lose."""


class OutOfTime(Exception):
    """The slice ended; what was encoded is stored, and the next slice goes on from there."""


def text_digest(text: str) -> str:
    """Returns the name of a text in the cache."""
    return hashlib.sha256(text.encode()).hexdigest()


def embed(
    engine: Engine, encoder: Encoder, tenant: str, texts: Iterable[str], deadline: float
) -> dict[str, Vector]:
    """Returns unit vectors by text; encodes only texts that were never seen.

    Holds no transaction while it encodes. Raises OutOfTime when ``deadline`` (of time.monotonic)
    passes before all are encoded.
    """
    by_digest = {text_digest(text): text for text in texts}
    found = _read(engine, encoder, tenant, list(by_digest))
    missing = [digest for digest in by_digest if digest not in found]
    for start in range(0, len(missing), _ENCODE_BATCH):
        if time.monotonic() > deadline:
            raise OutOfTime
        digests = missing[start : start + _ENCODE_BATCH]
        with tracing.span("encode", attributes={"lorauter.texts": len(digests)}):
            vectors = encoder.encode([by_digest[digest] for digest in digests])
        reach("embed")
        fresh = dict(zip(digests, vectors, strict=True))
        _store(engine, encoder, tenant, fresh)
        telemetry.ENCODED.inc(len(fresh))
        found.update(fresh)
    return {text: found[digest] for digest, text in by_digest.items()}


def _read(engine: Engine, encoder: Encoder, tenant: str, digests: list[str]) -> dict[str, Vector]:
    found: dict[str, Vector] = {}
    table = CachedEmbedding
    with Session(engine) as session:
        for start in range(0, len(digests), _READ_BATCH):
            rows = session.exec(
                select(table.text_digest, table.vector).where(
                    table.tenant == tenant,
                    table.encoder_digest == encoder.digest,
                    col(table.text_digest).in_(digests[start : start + _READ_BATCH]),
                )
            )
            for digest, vector in rows:
                found[digest] = np.frombuffer(vector, dtype="<f4").astype(np.float32)
    return found


def _store(engine: Engine, encoder: Encoder, tenant: str, vectors: Mapping[str, Vector]) -> None:
    rows = [
        {
            "tenant": tenant,
            "encoder_digest": encoder.digest,
            "text_digest": digest,
            "vector": np.ascontiguousarray(vector, dtype="<f4").tobytes(),
        }
        for digest, vector in sorted(vectors.items())
    ]
    with engine.begin() as connection:
        connection.execute(insert(CachedEmbedding).on_conflict_do_nothing(), rows)
