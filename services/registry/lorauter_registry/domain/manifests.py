"""Pool manifests: what is asked and what is answered, as the protos have it, for both transports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorauter_registry.domain.fields import MAX_INT64, Id, Moment, PageRequest, Text, Value, WriteRequest
from lorauter_registry.domain.resources import AdapterVersion


class ManifestMember(Value):
    """A part of an entry."""

    adapter_id: str
    version: int
    digest: str
    weight: float


class ManifestEntry(Value):
    """What a TGI instance loads under one name."""

    name: str
    members: tuple[ManifestMember, ...]
    rank: int
    size_bytes: int
    gain: float


class ManifestLeftOut(Value):
    """What a manifest leaves out though it would gain something."""

    members: tuple[ManifestMember, ...]
    size_bytes: int
    gain: float
    reason: str


class PoolManifest(Value):
    """What the TGI instances of a pool load."""

    digest: str
    pool: str
    adapters: tuple[AdapterVersion, ...]
    published: bool
    create_time: Moment
    entries: tuple[ManifestEntry, ...]
    memory_bytes: int
    size_bytes: int
    expected_share: float
    published_share: float
    lora_adapters: str
    launcher_arguments: tuple[str, ...]
    publish_time: Moment | None = None
    left_out: tuple[ManifestLeftOut, ...]
    write_time: Moment | None = None


class PoolManifestList(Value):
    """A page of a pool's manifests, newest first."""

    manifests: tuple[PoolManifest, ...]
    next_page_token: str = ""


class ManifestProposal(WriteRequest):
    """Proposes a manifest."""

    memory_bytes: Annotated[int, Field(ge=0, le=MAX_INT64)] = 0


class ProposePoolManifest(ManifestProposal):
    """Proposes a pool's manifest."""

    pool: Id


class PublishPoolManifest(WriteRequest):
    """Publishes a pool's manifest by its digest."""

    pool: Id
    digest: Annotated[Text, Field(min_length=1, max_length=128)]


class ListPoolManifests(PageRequest):
    """Asks for a page of a pool's manifests."""

    pool: Id
