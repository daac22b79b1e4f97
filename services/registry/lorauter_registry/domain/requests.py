"""What the registry is asked: the protos' requests as checked values, for both transports.

A class is named as its RPC; field names, bounds and meanings are the protos'.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.fields import (
    MAX_INT32,
    BackendUrl,
    BaseAliases,
    Change,
    Description,
    Id,
    Name,
    OptionalId,
    PageRequest,
    Tags,
    Text,
    Value,
    Version,
    WriteRequest,
)
from lorauter_registry.domain.resources import BackendKind, PromptFormat, UntypicalPolicy
from lorauter_registry.domain.serving import (
    BackendLimits,
    ServingPolicy,
    check_limits,
    default_for_unspecified,
)

Policy = Annotated[UntypicalPolicy, default_for_unspecified("ROUTE")]
Feature = Annotated[int, Field(ge=1, le=MAX_INT32)]
Revision = Annotated[Text, Field(max_length=128)]


class GetById(Value):
    """Asks for one resource."""

    id: Id


class LinearModuleInput(Value):
    """A linear layer of the base model."""

    name: Name
    in_features: Feature
    out_features: Feature


class CreatePool(WriteRequest):
    """Creates a pool."""

    id: Id
    description: Description = ""
    base_model: Name
    base_revision: Revision = ""
    base_path: Annotated[Text, Field(max_length=4_096)] = ""
    aliases: BaseAliases = ()
    modules: Annotated[tuple[LinearModuleInput, ...], Field(max_length=100_000)] = ()
    untypical_policy: Policy = UntypicalPolicy.ROUTE
    serving: ServingPolicy = ServingPolicy()


class PoolChange(Change):
    """Changes a pool. Absent fields stay as they are."""

    description: Description | None = None
    aliases: BaseAliases = ()
    replace_aliases: bool = False
    untypical_policy: Policy | None = None
    serving: ServingPolicy | None = None


class UpdatePool(PoolChange):
    """Changes a pool by its id."""

    id: Id


class BackendInput(WriteRequest):
    """Registers a backend, or changes one."""

    pool: Id
    kind: BackendKind
    url: BackendUrl
    limits: BackendLimits = BackendLimits()

    @model_validator(mode="after")
    def _limits_suit_kind(self) -> Self:
        check_limits(self.kind, self.limits)
        return self


class RegisterBackend(BackendInput):
    """Registers a backend under its id."""

    id: Id


class DrainBackend(Change):
    """Drains a backend."""

    id: Id


class PromptInput(Value):
    """How prompts are built."""

    format: Annotated[PromptFormat, default_for_unspecified("RAW")] = PromptFormat.RAW
    system: Annotated[Text, Field(max_length=32_768)] = ""

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Self:
        if self.system and self.format is not PromptFormat.CHAT:
            raise InvalidArgument(
                "INVALID_FIELD",
                "prompt.system is only for chats: set format to CHAT, or leave it out",
                field="prompt.system",
            )
        return self


class GenerationSettingsInput(Value):
    """How answers are generated."""

    max_new_tokens: Annotated[int, Field(ge=0, le=4_096)] = 0
    stop: Annotated[
        tuple[Annotated[Text, Field(min_length=1, max_length=1_024)], ...], Field(max_length=4)
    ] = ()


class CreateTask(WriteRequest):
    """Creates a task."""

    id: Id
    pool: Id
    description: Description = ""
    metric: Annotated[Text, Field(min_length=1, max_length=63)]
    prompt: PromptInput = PromptInput()
    generation_settings: GenerationSettingsInput = GenerationSettingsInput()
    tags: Tags = ()


class TaskChange(Change):
    """Changes a task. Absent fields stay as they are."""

    description: Description | None = None
    metric: Annotated[Text, Field(min_length=1, max_length=63)] | None = None
    prompt: PromptInput | None = None
    generation_settings: GenerationSettingsInput | None = None
    tags: Tags = ()
    replace_tags: bool = False


class UpdateTask(TaskChange):
    """Changes a task by its id."""

    id: Id


class DeleteTask(Change):
    """Deletes a task."""

    id: Id


class PutValidationSet(Change):
    """Replaces a validation set; the examples travel beside it."""

    task_id: Id


class ListPools(PageRequest):
    """Asks for a page of pools."""


class ListOfPool(PageRequest):
    """Asks for a page, of one pool or of all."""

    pool: OptionalId = ""


class ListBackends(ListOfPool):
    """Asks for a page of backends."""


class ListTasks(ListOfPool):
    """Asks for a page of tasks."""


class ListValidationExamples(PageRequest):
    """Asks for a page of validation examples."""

    task_id: Id
    version: Version = 0
