"""The first tables: pools, backends, tasks, adapters, affinities, operations, outbox."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Column = sa.Column[Any]


def _texts(*names: str) -> list[Column]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _integers(*names: str) -> list[Column]:
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]


def _big(*names: str) -> list[Column]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]


def _flags(*names: str) -> list[Column]:
    return [sa.Column(name, sa.Boolean(), nullable=False) for name in names]


def _floats(*names: str) -> list[Column]:
    return [sa.Column(name, sa.Float(), nullable=False) for name in names]


def _json(*names: str) -> list[Column]:
    return [sa.Column(name, JSONB(), nullable=False) for name in names]


def _now(*names: str) -> list[Column]:
    default = sa.text("clock_timestamp()")
    return [
        sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=False) for name in names
    ]


def _later(*names: str) -> list[Column]:
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=True) for name in names]


def _resource() -> list[Column]:
    return [*_integers("revision"), *_big("generation"), *_now("create_time", "update_time")]


def _key(*names: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint("tenant", *names)


def _of(table: str, column: str, cascade: bool = False) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", column], [f"{table}.tenant", f"{table}.id"], ondelete="CASCADE" if cascade else None
    )


def upgrade() -> None:
    """Creates all tables."""
    _create_counters()
    _create_work()
    _create_pools()
    _create_tasks()
    _create_adapters()
    _create_measurements()


def _create_counters() -> None:
    op.create_table(
        "generation",
        *_texts("tenant"),
        *_big("value"),
        sa.Column("published", sa.BigInteger(), nullable=True),
        _key(),
    )
    op.create_table(
        "idempotent_write",
        *_texts("tenant", "method", "request_id", "request_digest"),
        *_json("response"),
        *_now("create_time"),
        _key("method", "request_id"),
    )
    op.create_index("ix_idempotent_write_create_time", "idempotent_write", ["create_time"])


def _create_work() -> None:
    op.create_table(
        "operation",
        *_texts("tenant", "id", "kind", "pool", "state"),
        *_json("request"),
        *_big("done", "total"),
        *_texts("message", "error"),
        *_flags("cancel_requested"),
        *_now("create_time", "update_time"),
        *_later("end_time"),
        _key("id"),
    )
    op.create_index("operation_created", "operation", ["tenant", "create_time"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        *_texts("tenant", "topic", "key"),
        *_big("generation"),
        *_integers("attempts"),
        *_big("fence"),
        *_texts("lease_owner"),
        *_now("available_at"),
        *_later("lease_until"),
        *_texts("last_error"),
        *_now("create_time"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("outbox_due", "outbox", ["topic", "available_at"])
    op.create_index("outbox_key", "outbox", ["tenant", "topic", "key"])


def _create_pools() -> None:
    op.create_table(
        "pool",
        *_texts("tenant", "id", "description", "base_model", "base_revision"),
        *_texts("weights_digest", "tokenizer_digest"),
        *_json("aliases", "modules"),
        *_texts("untypical_policy", "pinned_profile"),
        *_resource(),
        _key("id"),
    )
    op.create_table(
        "backend",
        *_texts("tenant", "id", "pool", "kind", "url", "state"),
        *_resource(),
        _of("pool", "pool"),
        _key("id"),
    )
    op.create_table(
        "profile",
        *_texts("tenant", "pool", "digest"),
        *_big("generation"),
        *_json("constants", "figures"),
        *_flags("active"),
        *_now("create_time"),
        _of("pool", "pool"),
        _key("pool", "digest"),
    )
    op.create_index("profile_created", "profile", ["tenant", "pool", "create_time"])


def _create_tasks() -> None:
    op.create_table(
        "task",
        *_texts("tenant", "id", "pool", "description", "metric"),
        *_json("prompt", "generation_settings", "tags"),
        *_integers("version", "example_count"),
        *_texts("state"),
        *_resource(),
        _of("pool", "pool"),
        _key("id"),
    )
    op.create_index("task_pool", "task", ["tenant", "pool", "id"])
    op.create_table(
        "task_version",
        *_texts("tenant", "task_id"),
        *_integers("version"),
        *_texts("metric", "prompt_digest"),
        *_integers("examples_version"),
        *_texts("examples_digest"),
        *_integers("example_count"),
        *_now("create_time"),
        _of("task", "task_id", cascade=True),
        _key("task_id", "version"),
    )
    op.create_table(
        "validation_example",
        *_texts("tenant", "task_id"),
        *_integers("version", "position"),
        *_texts("input", "target"),
        _of("task", "task_id", cascade=True),
        _key("task_id", "version", "position"),
    )


def _create_adapters() -> None:
    op.create_table(
        "adapter",
        *_texts("tenant", "id", "pool", "description"),
        *_json("tags", "aliases"),
        *_integers("latest_version"),
        *_resource(),
        _of("pool", "pool"),
        _key("id"),
    )
    op.create_index("adapter_pool", "adapter", ["tenant", "pool", "id"])
    op.create_table(
        "adapter_version",
        *_texts("tenant", "adapter_id"),
        *_integers("version"),
        *_texts("digest", "source", "base_model"),
        *_flags("base_assumed"),
        *_integers("rank"),
        *_floats("alpha"),
        *_flags("rslora"),
        *_json("target_modules"),
        *_big("size_bytes"),
        *_texts("state", "state_reason"),
        *_later("pins_until"),
        *_texts("successor"),
        *_now("create_time"),
        _of("adapter", "adapter_id", cascade=True),
        _key("adapter_id", "version"),
    )
    op.create_index("ix_adapter_version_digest", "adapter_version", ["digest"])


def _create_measurements() -> None:
    op.create_table(
        "affinity",
        *_texts("tenant", "task_id"),
        *_integers("task_version"),
        *_texts("adapter_id"),
        *_integers("adapter_version"),
        *_texts("metric"),
        *_integers("metric_version"),
        *_texts("prompt_digest"),
        *_floats("score"),
        *_integers("count"),
        *_floats("standard_error"),
        *_integers("round"),
        *_flags("imported"),
        *_now("measure_time"),
        _of("task", "task_id", cascade=True),
        _key("task_id", "task_version", "adapter_id", "adapter_version"),
    )
    op.create_table(
        "cached_embedding",
        *_texts("tenant", "encoder_digest", "text_digest"),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        _key("encoder_digest", "text_digest"),
    )


def downgrade() -> None:
    """Drops all tables, those first that refer to others."""
    for table in (
        "cached_embedding",
        "affinity",
        "adapter_version",
        "adapter",
        "validation_example",
        "task_version",
        "task",
        "profile",
        "backend",
        "pool",
        "outbox",
        "operation",
        "idempotent_write",
        "generation",
    ):
        op.drop_table(table)
