"""The tables of PostgreSQL, the truth of the whole suite. Alembic's migrations follow them.

Every table carries ``tenant``. Times are timezone-aware UTC, set by the database. ``generation`` is the
number of the change that last touched a row; ``revision`` counts a resource's changes and is its etag.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, ForeignKeyConstraint, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB
from sqlmodel import Field, SQLModel

from lorauter.store.access_tables import ApiKey as ApiKey
from lorauter.store.access_tables import AuditEntry as AuditEntry
from lorauter.store.columns import now_column, time_column
from lorauter.store.composition_table import Composition as Composition
from lorauter.store.decision_table import Decision as Decision
from lorauter.store.manifest_table import PoolManifest as PoolManifest
from lorauter.store.outbox_table import Outbox as Outbox


def _json(**options: Any) -> Any:
    return Field(sa_column=Column(JSONB, nullable=False), **options)


def _generation() -> Any:
    return Field(sa_type=BigInteger)


class Generation(SQLModel, table=True):
    """The counter of accepted changes of a tenant.

    Every write locks its row until it commits, so generations commit in their order.
    """

    tenant: str = Field(primary_key=True)
    value: int = _generation()
    published: int | None = Field(default=None, sa_type=BigInteger)
    """The newest generation whose marker is in the index."""


class Pool(SQLModel, table=True):
    """A base model with its adapters and backends."""

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    description: str = ""
    base_model: str
    base_revision: str = ""
    weights_digest: str = ""
    tokenizer_digest: str = ""
    aliases: list[str] = _json(default_factory=list)
    modules: dict[str, list[int]] = _json(default_factory=dict)
    """Linear layers by full name: [in_features, out_features]."""
    chat_format: dict[str, str] = _json(default_factory=dict)
    """The base's lorauter.lora.chat_format.ChatFormat; empty where it is not known."""
    untypical_policy: str = "ROUTE"
    serving: dict[str, Any] = _json(default_factory=dict)
    """The registry's ServingPolicy by its names; absent ones have their defaults."""
    pinned_profile: str = ""
    """Digest of the profile whose constants an operator restored; empty: fit at every change."""
    revision: int = 1
    generation: int = _generation()
    create_time: datetime = now_column()
    update_time: datetime = now_column()


class Backend(SQLModel, table=True):
    """An inference server of a pool."""

    __table_args__ = (ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"]),)

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    pool: str
    kind: str
    url: str
    limits: dict[str, Any] = _json(default_factory=dict)
    """The registry's BackendLimits by their names; absent ones have their defaults."""
    state: str = "ACTIVE"
    revision: int = 1
    generation: int = _generation()
    create_time: datetime = now_column()
    update_time: datetime = now_column()


class Task(SQLModel, table=True):
    """A task; ``version`` names its current row in task_version, 0 while there is none."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"]),
        Index("task_pool", "tenant", "pool", "id"),
    )

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    pool: str
    description: str = ""
    metric: str
    prompt: dict[str, str] = _json(default_factory=dict)
    """{"format": "RAW" | "CHAT", "system": text}."""
    generation_settings: dict[str, Any] = _json(default_factory=dict)
    """{"max_new_tokens": int, "stop": [text]}."""
    tags: list[str] = _json(default_factory=list)
    version: int = 0
    example_count: int = 0
    state: str = "REGISTERED"
    revision: int = 1
    generation: int = _generation()
    create_time: datetime = now_column()
    update_time: datetime = now_column()


class TaskVersion(SQLModel, table=True):
    """An immutable version of a task: what an affinity was measured against."""

    __tablename__ = "task_version"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    metric: str
    prompt_digest: str
    """sha256 of prompt format and generation settings: the same for matching and serving."""
    examples_version: int
    """The version whose rows in validation_example this one uses (an update of the metric copies none)."""
    examples_digest: str = ""
    """sha256 of the examples in their order, by which a repeated set is known."""
    example_count: int
    create_time: datetime = now_column()


class ValidationExample(SQLModel, table=True):
    """One question with its answer, at its place in a validation set."""

    __tablename__ = "validation_example"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    position: int = Field(primary_key=True)
    input: str
    target: str


class Adapter(SQLModel, table=True):
    """A LoRA adapter; its weights are in its versions."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"]),
        Index("adapter_pool", "tenant", "pool", "id"),
    )

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    pool: str
    description: str = ""
    tags: list[str] = _json(default_factory=list)
    aliases: dict[str, int] = _json(default_factory=dict)
    latest_version: int = 0
    revision: int = 1
    generation: int = _generation()
    create_time: datetime = now_column()
    update_time: datetime = now_column()


class AdapterVersion(SQLModel, table=True):
    """An immutable version of an adapter, addressed by content; only its state moves."""

    __tablename__ = "adapter_version"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "adapter_id"], ["adapter.tenant", "adapter.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    adapter_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    digest: str = Field(index=True)
    source: str
    base_model: str
    base_assumed: bool = False
    rank: int
    alpha: float
    rslora: bool = False
    target_modules: list[str] = _json(default_factory=list)
    size_bytes: int = Field(sa_type=BigInteger)
    state: str = "REGISTERED"
    state_reason: str = ""
    pins_until: datetime | None = time_column()
    successor: str = ""
    create_time: datetime = now_column()


class Affinity(SQLModel, table=True):
    """What was measured: the score of an adapter version on a task version.

    The base is adapter_id ``base``, adapter_version 0, and so has no foreign key.
    """

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    task_version: int = Field(primary_key=True)
    adapter_id: str = Field(primary_key=True)
    adapter_version: int = Field(primary_key=True)
    metric: str
    metric_version: int = 1
    prompt_digest: str
    score: float
    count: int
    standard_error: float
    round: int = 0
    imported: bool = False
    measure_time: datetime = now_column()
    shrunk_score: float = 0.0
    """What routing uses: see lorauter.matching.evidence."""
    eligible: bool = True
    judged_score: float | None = None
    """Mean score on the examples that did not choose the adapter."""
    judged_count: int = 0
    lift: float | None = None
    lift_error: float = 0.0
    likelihood: float | None = None
    place: int = 0
    """Among the adapters that stayed, by the choosing examples alone, from 1; 0 for all others."""


class Measurement(SQLModel, table=True):
    """What an adapter's content scored on the examples of a task, example by example.

    Keyed by content, not by version: a validation set that changes in part keeps what stays. The base
    has the empty ``digest``, a weighted set its lorauter.matching.set_name. The three arrays have one
    element for each example; ``keys`` are lorauter.matching.example_key's; a score or likelihood that was
    not measured is NaN.
    """

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    metric_version: int = Field(primary_key=True)
    prompt_digest: str = Field(primary_key=True)
    keys: list[int] = Field(sa_column=Column(ARRAY(BigInteger), nullable=False))
    scores: list[float] = Field(sa_column=Column(ARRAY(DOUBLE_PRECISION), nullable=False))
    likelihoods: list[float] = Field(sa_column=Column(ARRAY(DOUBLE_PRECISION), nullable=False))
    measure_time: datetime = now_column()


class Operation(SQLModel, table=True):
    """Long work with progress; its work items are leased through the outbox."""

    __table_args__ = (Index("operation_created", "tenant", "create_time"),)

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    kind: str
    pool: str
    state: str = "PENDING"
    request: dict[str, Any] = _json(default_factory=dict)
    done: int = Field(default=0, sa_type=BigInteger)
    total: int = Field(default=0, sa_type=BigInteger)
    message: str = ""
    error: str = ""
    progress: dict[str, Any] = _json(default_factory=dict)
    """Of a matching: {"strategy", "task_count", "done_task_count", "alive": [int], "quarantined_count"}."""
    cancel_requested: bool = False
    create_time: datetime = now_column()
    update_time: datetime = now_column()
    end_time: datetime | None = time_column()


class OperationPart(SQLModel, table=True):
    """One task of a matching: the unit that workers share out, leased through the outbox."""

    __tablename__ = "operation_part"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "operation_id"], ["operation.tenant", "operation.id"], ondelete="CASCADE"
        ),
    )

    tenant: str = Field(primary_key=True)
    operation_id: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    state: str = "PENDING"
    """PENDING, RUNNING or DONE."""
    done: int = Field(default=0, sa_type=BigInteger)
    """Evaluations recorded."""
    left: int = Field(default=0, sa_type=BigInteger)
    """Evaluations still expected."""
    in_flight: int = Field(default=0, sa_type=BigInteger)
    """Evaluations that were sent and not recorded yet; they count against the budget."""
    alive: list[int] = _json(default_factory=list)
    """Arms alive by round, from round 1."""
    update_time: datetime = now_column()


class CachedEmbedding(SQLModel, table=True):
    """The unit vector of a text, so that a rebuild of the index encodes nothing.

    Shared by content between tenants' rows only within a tenant: the key begins with it.
    """

    __tablename__ = "cached_embedding"

    tenant: str = Field(primary_key=True)
    encoder_digest: str = Field(primary_key=True)
    text_digest: str = Field(primary_key=True)
    vector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """float32, little-endian."""


class Profile(SQLModel, table=True):
    """A routing profile that was fitted for a pool."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"]),
        Index("profile_created", "tenant", "pool", "create_time"),
    )

    tenant: str = Field(primary_key=True)
    pool: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    generation: int = _generation()
    constants: dict[str, float] = _json(default_factory=dict)
    figures: dict[str, float] = _json(default_factory=dict)
    active: bool = False
    create_time: datetime = now_column()


class IdempotentWrite(SQLModel, table=True):
    """What a write with a request_id answered, for 24 hours."""

    __tablename__ = "idempotent_write"

    tenant: str = Field(primary_key=True)
    method: str = Field(primary_key=True)
    request_id: str = Field(primary_key=True)
    request_digest: str
    response: dict[str, Any] = _json(default_factory=dict)
    create_time: datetime = Field(
        default=None,
        sa_column=Column(
            DateTime(timezone=True), server_default=text("clock_timestamp()"), nullable=False, index=True
        ),
    )
