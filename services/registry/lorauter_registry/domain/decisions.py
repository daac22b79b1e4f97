"""Recorded decisions: what is asked about them, and what is answered."""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from lorauter_registry.domain.fields import Moment, Value
from lorauter_registry.domain.requests import ListOfPool


def _bytes(value: Any) -> Any:
    return base64.b64decode(value) if isinstance(value, str) else value


Base64 = Annotated[
    bytes,
    BeforeValidator(_bytes),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), return_type=str, when_used="json"),
]
"""Bytes, which are base64 in JSON."""


class DecisionAction(StrEnum):
    """What a router said to do with a query."""

    ADAPTERS = "ADAPTERS"
    BASE = "BASE"
    REFUSE = "REFUSE"


class DecidedAdapter(Value):
    """An adapter of a decision's weighted set."""

    adapter_id: str
    version: int
    weight: float


class DecidedTask(Value):
    """A task that a decision's query resembled."""

    task_id: str
    similarity: float
    probability: float


class DecidedOptions(Value):
    """How a decision's query was to be routed."""

    max_adapters: int
    tags: tuple[str, ...] = ()
    exclude_tasks: tuple[str, ...] = ()
    exclude_adapters: tuple[str, ...] = ()


class Decision(Value):
    """A decision that a router recorded."""

    id: str
    pool: str
    pool_tenant: str
    time: Moment
    strategy: str
    generation: str
    profile_digest: str
    encoder_digest: str
    stale: bool
    action: DecisionAction
    best_adapter: str
    best_version: int
    expected_utility: float
    typicality: float
    adapters: tuple[DecidedAdapter, ...]
    tasks: tuple[DecidedTask, ...]
    options: DecidedOptions
    text_digest: str
    vector: Base64
    terms: Base64
    text: str


class ListDecisions(ListOfPool):
    """Asks for a page of decisions."""

    since: Moment | None = Field(None, description="Only decisions of this moment or later.")
    with_features: bool = Field(False, description="Whether to fill `vector` and `terms`.")


class DecisionList(Value):
    """A page of decisions, newest first."""

    decisions: tuple[Decision, ...]
    next_page_token: str = ""
