"""What the worker reads from its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from lorauter.encoder import DEFAULT_ENCODER, Precision
from lorauter.matching import DEFAULT_STRATEGY, STRATEGY_NAMES
from lorauter.settings import BackendSettings, HttpUrl, PostgresUrl, RedisUrl, url_field

Topic = Literal["index", "matching"]


class Settings(BackendSettings):
    """What the worker needs."""

    database_url: PostgresUrl = url_field("DATABASE_URL", "PostgreSQL: `postgresql://user@host:port/name`.")
    redis_url: RedisUrl = url_field("REDIS_URL", "Broker that carries wake-ups: `redis://host:port/0`.")
    qdrant_url: HttpUrl = url_field(
        "QDRANT_URL", "Index: `http://host:6333`, with an API key `https://:key@host:6333`."
    )
    queues: Annotated[tuple[Topic, ...], NoDecode] = Field(
        ("index", "matching"),
        min_length=1,
        description="Work that it does, separated by commas: `index` (with the encoder), `matching`.",
    )
    concurrency: int = Field(
        1, ge=1, le=64, description="Child processes; each one of `index` holds an encoder."
    )
    encoder: str = Field(
        DEFAULT_ENCODER,
        description="Sentence encoder: `all-minilm-l6-v2`, a directory, or a hub id in the local cache.",
    )
    encoder_precision: Precision = Field(
        "fp32",
        description="`fp32`, or `int8`: twice as fast and a little less exact; the same for all workers and "
        "routers. Another one embeds everything anew.",
    )
    encoder_threads: int = Field(1, ge=1, le=64, description="CPU threads of the encoder.")
    representation_examples: int = Field(
        256, ge=1, le=100_000, description="Most examples of a task that are embedded, evenly spaced."
    )
    lease_seconds: float = Field(
        10.0, ge=0.5, le=600, description="How long claimed work stays with a silent worker."
    )
    heartbeat_seconds: float = Field(
        3.0, ge=0.1, le=200, description="How often a lease is renewed; less than half of it."
    )
    sweep_seconds: float = Field(
        2.0, ge=0.1, le=60, description="How often due work is looked for without a wake-up."
    )
    reconcile_seconds: float = Field(
        30.0, ge=0.5, le=86_400, description="How often the whole index is compared with the registry."
    )
    former_encoder_seconds: float = Field(
        3_600.0,
        ge=0,
        le=2_592_000,
        description="How long the index keeps what a former encoder embedded, after all has moved to this "
        "one's: until then the way back is quick.",
    )
    slice_seconds: float = Field(
        20.0, ge=0.1, le=120, description="How long a task works before it makes room for another."
    )
    max_attempts: int = Field(
        20, ge=1, le=1000, description="Failures in a row after which a matching is given up."
    )
    matching_batch: int = Field(
        512, ge=1, le=1024, description="Evaluations in one call to a backend: what a kill can lose."
    )
    matching_examples: int = Field(
        256, ge=1, le=100_000, description="Most examples of a task that an adapter is measured on."
    )
    matching_strategy: str = Field(
        DEFAULT_STRATEGY,
        description=f"Strategy of matchings that name none: one of {', '.join(STRATEGY_NAMES)}.",
    )
    matching_rate: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="Most evaluations per second of one child process, where a backend serves as well; "
        "0: no limit, else at least 0.1.",
    )
    evaluation_timeout_seconds: float = Field(
        100.0, ge=1, le=170, description="How long one call to a backend may take, with its retries."
    )
    decision_days: float = Field(
        7.0, gt=0, le=3650, description="How long the decisions that routers record are kept, in days."
    )
    index_timeout_seconds: float = Field(
        10.0, ge=1, le=120, description="How long one call to the index may take."
    )
    adapter_store: Path | None = Field(
        None,
        description="Folder of the registry's adapter store, where workers of `index` write composites. "
        "Without it they write none.",
    )

    manifest_seconds: float = Field(
        300.0,
        ge=1,
        le=86_400,
        description="How often a manifest is proposed, by workers of `index` that have the adapter store, "
        "for pools whose policy says how much memory adapters may take.",
    )
    manifest_pause_seconds: float = Field(
        3_600.0,
        ge=0,
        le=2_592_000,
        description="Least time between two publications of a pool's manifests by workers, where its policy "
        "is AUTO: each one means that its TGI instances are to be started again.",
    )
    manifest_least_gain: float = Field(
        0.01,
        ge=0,
        le=1,
        description="How much more of the expected score, 0 to 1, a manifest must promise than the published "
        "one before workers publish it.",
    )

    @field_validator("queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return value

    @field_validator("adapter_store", mode="before")
    @classmethod
    def _is_none_where_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("matching_strategy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in STRATEGY_NAMES:
            raise ValueError(f"LORAUTER_MATCHING_STRATEGY must be one of {', '.join(STRATEGY_NAMES)}")
        return value

    @field_validator("matching_rate")
    @classmethod
    def _ends_within_a_slice(cls, value: float) -> float:
        if 0 < value < 0.1:
            raise ValueError("LORAUTER_MATCHING_RATE must be 0 or at least 0.1")
        return value

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("LORAUTER_HEARTBEAT_SECONDS must be at most half of LORAUTER_LEASE_SECONDS")
        return self
