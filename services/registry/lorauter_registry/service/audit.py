"""Who changed what."""

from __future__ import annotations

from sqlmodel import col, select

from lorauter.identifiers import encode_generation
from lorauter.store import tables
from lorauter_registry.domain.keys import AuditEntry, AuditEntryList, ListAuditEntries
from lorauter_registry.service.base import Part
from lorauter_registry.service.lists import paginate


class Audit(Part):
    """Who changed what in the caller's tenant."""

    def list_audit_entries(self, request: ListAuditEntries) -> AuditEntryList:
        """Lists the writes that were accepted, newest first."""
        entry = tables.AuditEntry
        statement = select(entry).where(entry.tenant == self.tenant)
        if request.key_id:
            statement = statement.where(entry.key_id == request.key_id)
        with self.reading() as session:
            entries, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(entry.time), col(entry.id)],
                lambda rows: [_entry_of(row) for row in rows],
                newest_first=True,
            )
        return AuditEntryList(entries=entries, next_page_token=token)


def _entry_of(row: tables.AuditEntry) -> AuditEntry:
    generation = "" if row.generation is None else encode_generation(row.generation, row.tenant)
    return AuditEntry(**row.model_dump(exclude={"id", "generation"}), generation=generation)
