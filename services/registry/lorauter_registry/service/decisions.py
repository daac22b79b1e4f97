"""Decisions that routers recorded; the worker stores and forgets them."""

from __future__ import annotations

from sqlmodel import col, select

from lorauter.identifiers import encode_generation
from lorauter.store import tables
from lorauter_registry.domain.decisions import Decision, DecisionList, ListDecisions
from lorauter_registry.domain.requests import GetById
from lorauter_registry.service.base import Part
from lorauter_registry.service.lists import paginate


class Decisions(Part):
    """Decisions that routers recorded."""

    def get_decision(self, request: GetById) -> Decision:
        """Returns a decision with all that is kept of it; raises NotFound (DECISION_NOT_FOUND)."""
        with self.reading() as session:
            row = self.existing(session, tables.Decision, "decision", request.id)
        return _decision_of(row, with_features=True)

    def list_decisions(self, request: ListDecisions) -> DecisionList:
        """Lists decisions, newest first; raises NotFound (POOL_NOT_FOUND)."""
        decision = tables.Decision
        statement = select(decision).where(decision.tenant == self.tenant)
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(decision.pool == request.pool)
            if request.since is not None:
                statement = statement.where(decision.time >= request.since)
            decisions, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(decision.time), col(decision.id)],
                lambda rows: [_decision_of(row, request.with_features) for row in rows],
                newest_first=True,
            )
        return DecisionList(decisions=decisions, next_page_token=token)


def _decision_of(row: tables.Decision, with_features: bool) -> Decision:
    kept = row.model_dump(exclude={"tenant", "generation", "vector", "terms"})
    return Decision(
        **kept,
        generation=encode_generation(row.generation, row.tenant),
        vector=row.vector if with_features else b"",
        terms=row.terms if with_features else b"",
    )
