"""Decisions that routers recorded; the worker stores and forgets them."""

from __future__ import annotations

from sqlmodel import Session, col, select

from lorauter.access import PUBLIC_TENANT
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
        """Lists the caller's decisions, newest first; raises NotFound (POOL_NOT_FOUND)."""
        decision = tables.Decision
        statement = select(decision).where(decision.tenant == self.tenant)
        with self.reading() as session:
            if request.pool:
                whose = self._tenants_of_pool(session, request.pool)
                statement = statement.where(
                    decision.pool == request.pool, col(decision.pool_tenant).in_(whose)
                )
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

    def _tenants_of_pool(self, session: Session, pool_id: str) -> list[str]:
        """Returns how rows name whose pool is meant: the tenant's own, or else a public one."""
        if session.get(tables.Pool, (self.tenant, pool_id)) is None:
            if session.get(tables.Pool, (PUBLIC_TENANT, pool_id)) is not None:
                return [PUBLIC_TENANT]
            self.existing(session, tables.Pool, "pool", pool_id)
        return ["", self.tenant]


def _decision_of(row: tables.Decision, with_features: bool) -> Decision:
    kept = row.model_dump(exclude={"tenant", "pool_tenant", "generation", "vector", "terms"})
    whose = row.pool_tenant or row.tenant
    return Decision(
        **kept,
        pool_tenant=whose,
        generation=encode_generation(row.generation, whose),
        vector=row.vector if with_features else b"",
        terms=row.terms if with_features else b"",
    )
