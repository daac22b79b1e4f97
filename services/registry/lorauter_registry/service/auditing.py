"""Writes down who changed what, in the transaction that changes it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, tuple_

from lorauter.access import caller
from lorauter.store import Write, tables
from lorauter_registry.domain.fields import Value, WriteRequest

_FORGOTTEN_AT_ONCE = 100
"""Most old entries that one write removes, so that none waits long."""

_TABLE = tables.AuditEntry.metadata.tables["audit_entry"]


def record(tx: Write, request: WriteRequest, answer: Value, taken: int, kept: timedelta) -> None:
    """Adds the entry of a write that took generation ``taken``; removes some older than ``kept``."""
    tx.session.add(
        tables.AuditEntry(
            tenant=tx.tenant,
            id=str(uuid.uuid4()),
            time=tx.now,
            key_id=caller().key_id,
            method=type(request).__name__,
            resource=_resource(request, answer),
            request_id=request.request_id,
            generation=tx.generation if tx.generation >= taken else None,
        )
    )
    key = _TABLE.primary_key.columns
    old = select(*key).where(_TABLE.c.tenant == tx.tenant, _TABLE.c.time < tx.now - kept)
    tx.session.execute(delete(_TABLE).where(tuple_(*key).in_(old.limit(_FORGOTTEN_AT_ONCE))))


def _resource(request: Any, answer: Any) -> str:
    """Returns the id of what was changed: as the request has it, or as the answer does if it was made."""
    named = (getattr(request, name, "") for name in ("id", "task_id"))
    return next(filter(None, named), "") or getattr(answer, "id", "") or getattr(request, "pool", "")
