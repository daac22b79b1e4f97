"""A decision on its way from the router to the worker: one entry of a Redis stream for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorauter.errors import InvalidArgument

Detail = Literal["off", "outcome", "features", "text"]
"""How much of a decision is recorded.

``off``: nothing. ``outcome``: what was decided, and a digest of the text. ``features``: also what a replay
needs, the query's vector and the terms that the pool knows. ``text``: the routed text as well.
"""

GROUP = "workers"
"""The consumer group of all workers; a stream's entries are shared out among them."""

MOST_TEXT_BYTES = 32 * 1024
MOST_VECTOR_BYTES = 16 * 1024
MOST_TERMS_BYTES = 32 * 1024
"""A query with more of the pool's terms than that is recorded without features."""

Name = Annotated[str, Field(max_length=512)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]


def stream_of(tenant: str) -> str:
    """Returns the key of a tenant's stream."""
    return f"lorauter:decisions:{tenant}"


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecordedArm(_Value):
    """An arm of the weighted set."""

    adapter_id: Name
    version: int
    weight: float


class RecordedTask(_Value):
    """A task that the query resembles."""

    task_id: Name
    similarity: float
    probability: float


class RecordedOptions(_Value):
    """How the query was to be routed, in ids that the pool has; a tag that no task carries is empty."""

    max_adapters: int
    tags: Names = ()
    exclude_tasks: Names = ()
    exclude_adapters: Names = ()


class RecordedDecision(_Value):
    """What is kept of a decision, with those of the tenant that asked.

    ``pool`` is of ``pool_tenant``: that tenant, or the public one. ``time_ms`` is Unix time. ``text_digest``
    is that of the whole routed text, blake2b of 16 bytes in hex. ``vector`` and ``terms`` are as
    lorauter.routing.replaying packs them, and the three last fields are empty where they are not recorded.
    """

    id: str = Field(pattern="^[0-9a-f]{32}$")
    time_ms: int = Field(ge=0, le=253_402_300_799_999)
    pool_tenant: Name
    pool: Name
    strategy: Name
    generation: str = Field(pattern="^g[0-9a-f]{16}$")
    profile_digest: Name
    encoder_digest: Name
    stale: bool
    action: Literal["ADAPTERS", "BASE", "REFUSE"]
    best_adapter: Name
    best_version: int
    expected_utility: float
    typicality: float
    adapters: tuple[RecordedArm, ...]
    tasks: tuple[RecordedTask, ...]
    options: RecordedOptions
    text_digest: str = Field(pattern="^[0-9a-f]{32}$")
    vector: bytes = Field(b"", max_length=MOST_VECTOR_BYTES, exclude=True)
    terms: bytes = Field(b"", max_length=MOST_TERMS_BYTES, exclude=True)
    text: str = Field("", max_length=MOST_TEXT_BYTES, exclude=True)

    def entry(self) -> dict[str, bytes]:
        """Returns the fields of a stream entry."""
        features = {"vector": self.vector, "terms": self.terms, "text": self.text.encode()}
        return {
            "decision": self.model_dump_json().encode(),
            **{name: data for name, data in features.items() if data},
        }

    @classmethod
    def read(cls, entry: Mapping[bytes, bytes]) -> Self:
        """Returns the decision in a stream entry; raises InvalidArgument (BAD_DECISION_ENTRY)."""
        try:
            found = cls.model_validate_json(entry[b"decision"])
            features = {"vector": entry.get(b"vector", b""), "terms": entry.get(b"terms", b"")}
            text = entry.get(b"text", b"").decode()
            return cls.model_validate({**dict(found), **features, "text": text})
        except (ValidationError, KeyError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                "BAD_DECISION_ENTRY",
                f"the entry is no decision ({type(error).__name__}): is router and worker of one version?",
            ) from None
