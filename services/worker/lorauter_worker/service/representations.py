"""What tasks are represented by, computed once for each task version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from lorauter.encoder import Encoder
from lorauter.errors import InvalidArgument
from lorauter.prompts import PromptSpec, build_input
from lorauter.routing import TaskExamples, represent, routed_text, term_frequencies
from lorauter.routing.bm25 import terms_of
from lorauter.routing.model import Vector
from lorauter.store.tables import ValidationExample
from lorauter.telemetry import get_logger
from lorauter_worker.domain.spacing import spaced
from lorauter_worker.service.embeddings import embed
from lorauter_worker.service.state import TaskState

_log = get_logger(__name__)

Key = tuple[str, str, datetime, int]
"""Tenant, task id, when it was created (a deleted task's id may come again) and version."""


@dataclass(frozen=True, slots=True, eq=False)
class Represented:
    """What a task version adds to a profile, always the same object, and its centroid, (d,) float32."""

    examples: TaskExamples
    centroid: Vector


class Representations:
    """Remembers the representation of every current task version in this process."""

    def __init__(self, engine: Engine, encoder: Encoder, examples: int) -> None:
        """``examples`` is how many of a task's are embedded at most, evenly spaced."""
        self._engine = engine
        self._encoder = encoder
        self._examples = examples
        self._known: dict[Key, Represented | None] = {}

    def routed_texts(self, session: Session, tenant: str, tasks: Sequence[TaskState]) -> dict[Key, list[str]]:
        """Reads the routed texts of those tasks that are not represented yet."""
        return {
            key_of(tenant, task): self._read(session, tenant, task)
            for task in tasks
            if key_of(tenant, task) not in self._known
        }

    def complete(self, tenant: str, texts: Mapping[Key, list[str]], deadline: float) -> None:
        """Represents the tasks behind ``texts``; may raise OutOfTime, then nothing is lost."""
        distinct = {text for parts in texts.values() for text in parts}
        vectors = embed(self._engine, self._encoder, tenant, sorted(distinct), deadline) if distinct else {}
        for key, parts in texts.items():
            if parts:
                stacked = np.stack([vectors[text] for text in parts])
                terms = tuple(terms_of(term_frequencies(text)) for text in parts)
                whole = represent(stacked, parts)
                examples = TaskExamples(key[1], stacked, terms, terms_of(whole.terms))
                self._known[key] = Represented(examples, whole.centroid)
            else:
                self._known[key] = None

    def get(self, tenant: str, task: TaskState) -> Represented | None:
        """Returns a completed task's representation; None if none of its examples can be routed."""
        return self._known[key_of(tenant, task)]

    def keep_only(self, tenant: str, tasks: Sequence[TaskState]) -> None:
        """Forgets the tenant's tasks and versions that are gone."""
        current = {key_of(tenant, task) for task in tasks}
        for key in [key for key in self._known if key[0] == tenant and key not in current]:
            del self._known[key]

    def _read(self, session: Session, tenant: str, task: TaskState) -> list[str]:
        example = ValidationExample
        statement = (
            select(example.input)
            .where(
                example.tenant == tenant,
                example.task_id == task.row.id,
                example.version == task.version.examples_version,
                col(example.position).in_(spaced(task.version.example_count, self._examples)),
            )
            .order_by(col(example.position))
        )
        prompt = PromptSpec.from_json(task.row.prompt)
        texts = []
        for text in session.exec(statement):
            try:
                built = build_input(prompt, text)
                texts.append(routed_text(built.get("prompt") or built["messages"]))
            except InvalidArgument as error:
                _log.error("worker.example.not_routable", task=task.row.id, reason=error.reason)
        return texts


def key_of(tenant: str, task: TaskState) -> Key:
    """Returns what names a task's current version, the same never for two."""
    return tenant, task.row.id, task.row.create_time, task.version.version
