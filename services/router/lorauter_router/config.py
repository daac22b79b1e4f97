"""Settings of the router."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import NoDecode

from lorauter.decisions import Detail
from lorauter.encoder import DEFAULT_ENCODER, Precision
from lorauter.settings import HttpUrl, RedisUrl, RemoteAccessSettings, url_field


class Settings(RemoteAccessSettings):
    """What the router reads from its environment."""

    qdrant_url: HttpUrl = url_field(
        "QDRANT_URL",
        "Index to read snapshots from: `http://host:6333`, with an API key `https://:key@host:6333`.",
    )
    redis_url: RedisUrl | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Where decisions are left for the worker: `redis://host:port/0`. Without it, none are.",
    )
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Tenants whose pools are served beside the public ones, separated by commas, so that "
        "several routers can share them out. Empty: all that the index has.",
    )
    encoder: str = Field(
        DEFAULT_ENCODER,
        min_length=1,
        description="Encoder of queries: `all-minilm-l6-v2`, a directory or a hub id; the worker's own.",
    )
    next_encoder: str = Field(
        "",
        description="Encoder that is loaded beside the first, in the same precision, while workers change to "
        "it: queries are encoded by the one that embedded what is served. Empty: none.",
    )
    encoder_precision: Precision = Field(
        "fp32",
        description="`fp32`, or `int8`: twice as fast and a little less exact; the worker's own. For a BERT "
        "with mean pooling only, as the default is.",
    )
    encoder_threads: int = Field(1, ge=1, le=256, description="CPU threads that encode one batch.")
    encode_batch: int = Field(32, ge=1, le=256, description="Most queries that are encoded together.")
    encode_queue: int = Field(
        512, ge=256, le=65_536, description="Most queries that wait to be encoded; more are refused."
    )
    query_cache: int = Field(
        50_000,
        ge=0,
        le=10_000_000,
        description="Query vectors kept, some 2 kB each; 0 keeps none.",
    )
    exact_limit: int = Field(
        50_000,
        ge=0,
        le=1_000_000_000,
        description="Most tasks of a pool that are all scored; of more, those that the index finds are.",
    )
    search_timeout_seconds: float = Field(
        0.25,
        ge=0.01,
        le=60,
        description="How long the index may search for candidates; after that all tasks are scored.",
    )
    decision_cache: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="Decisions kept for queries that come again on the same snapshot, some 3 kB each; 0 "
        "keeps none.",
    )
    metric_names: int = Field(
        50,
        ge=0,
        le=10_000,
        description="Tasks, and adapters, that metrics of decisions tell apart: those that come most. The "
        "rest is `other`.",
    )
    poll_seconds: float = Field(0.25, ge=0.05, le=60, description="Time between looks for a newer snapshot.")
    believe_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="How long the index must hold an older generation than the one that is served before it "
        "counts as restored on purpose; a worker repairs any other within half of it.",
    )
    index_timeout_seconds: float = Field(
        5.0, ge=1, le=300, description="How long one call to the index may take."
    )
    generation_wait_seconds: float = Field(
        5.0,
        ge=0,
        le=60,
        description="Longest wait for `min_generation` within the caller's deadline.",
    )
    decision_detail: Detail = Field(
        "features",
        description="What is recorded of a decision: `off`: nothing; `outcome`; `features`: also the query's "
        "vector and those of its words that validation sets have, for replays; `text`: its text too.",
    )
    decision_queue: int = Field(
        4_096, ge=1, le=1_000_000, description="Most decisions that wait for Redis; more are dropped."
    )
    decision_stream: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="About how many decisions Redis keeps for the worker, some 2 kB each; the oldest go.",
    )

    @field_validator("tenants", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return value
