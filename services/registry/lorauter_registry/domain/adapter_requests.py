"""What the registry is asked about adapters and profiles.

A class is named as its RPC; field names, bounds and meanings are the protos'.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.fields import (
    AdapterId,
    Alias,
    Change,
    Description,
    Id,
    Moment,
    OptionalId,
    PageRequest,
    Tags,
    Text,
    Value,
    Version,
    WriteRequest,
)
from lorauter_registry.domain.requests import ListOfPool
from lorauter_registry.domain.resources import AdapterState

Source = Annotated[Text, Field(min_length=1, max_length=4_096)]


class RegisterAdapter(WriteRequest):
    """Registers an adapter's version."""

    id: AdapterId
    pool: Id
    description: Description = ""
    tags: Tags = ()
    path: Source | None = None
    hub: Source | None = None
    assume_base: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise InvalidArgument(
                "MISSING_FIELD" if self.path is None else "INVALID_FIELD",
                "give either path, a folder on the registry's machine, or hub, `namespace/name@commit`",
                field="path",
            )
        return self


class ListAdapters(ListOfPool):
    """Asks for a page of adapters."""

    state: AdapterState | None = None


class ListAdapterVersions(PageRequest):
    """Asks for a page of versions."""

    id: Id


class AliasTarget(Change):
    """Points an alias to a version; 0 removes it."""

    version: Version = 0


class SetAdapterAlias(AliasTarget):
    """Points an adapter's alias to a version."""

    id: Id
    alias: Alias


class AdapterChange(Change):
    """Changes an adapter. Absent fields stay as they are."""

    description: Description | None = None
    tags: Tags = ()
    replace_tags: bool = False


class UpdateAdapter(AdapterChange):
    """Changes an adapter by its id."""

    id: Id


class Retirement(Change):
    """Retires a version, or with 0 all of them."""

    version: Version = 0
    pins_until: Moment | None = None
    successor: OptionalId = ""


class RetireAdapter(Retirement):
    """Retires an adapter's versions."""

    id: Id


class Recall(Change):
    """Recalls a version, or with 0 all of them."""

    version: Version = 0
    reason: Annotated[Text, Field(min_length=1, max_length=4_096)]


class DisableAdapter(Recall):
    """Recalls an adapter's versions."""

    id: Id


class ListProfiles(PageRequest):
    """Asks for a page of a pool's profiles."""

    pool: Id


class ActivateProfile(WriteRequest):
    """Activates a profile, or with an empty digest undoes that."""

    pool: Id
    digest: Annotated[Text, Field(max_length=128)] = ""


class GetGeneration(Value):
    """Asks for the generation."""
