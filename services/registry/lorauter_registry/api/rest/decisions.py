"""Recorded decisions over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorauter_registry.api.rest.http import Reading
from lorauter_registry.domain.decisions import Decision, DecisionList, ListDecisions
from lorauter_registry.domain.requests import GetById

router = APIRouter()


@router.get("/v1/decisions", tags=["decisions"])
async def list_decisions(query: Annotated[ListDecisions, Query()], http: Reading) -> DecisionList:
    """Lists the decisions that routers recorded, newest first."""
    return await http.run(http.registry.list_decisions, query)


@router.get("/v1/decisions/{decision_id}", tags=["decisions"])
async def get_decision(decision_id: str, http: Reading) -> Decision:
    """Returns a decision with all that is kept of it."""
    return await http.read(http.registry.get_decision, GetById, id=decision_id)
