"""What lists and other calls answer that return no single resource."""

from __future__ import annotations

from lorauter_registry.domain.fields import Value
from lorauter_registry.domain.resources import (
    Adapter,
    AdapterVersion,
    Affinity,
    Backend,
    Operation,
    Pool,
    Profile,
    Task,
    ValidationExample,
)


class ListAnswer(Value):
    """A page; an empty ``next_page_token`` marks the last."""

    next_page_token: str = ""


class PoolList(ListAnswer):
    """A page of pools, by id."""

    pools: tuple[Pool, ...]


class BackendList(ListAnswer):
    """A page of backends, by id."""

    backends: tuple[Backend, ...]


class TaskList(ListAnswer):
    """A page of tasks, by id."""

    tasks: tuple[Task, ...]


class ValidationExampleList(ListAnswer):
    """A page of the examples of a task's version, in their order."""

    examples: tuple[ValidationExample, ...]
    version: int


class AdapterList(ListAnswer):
    """A page of adapters, by id."""

    adapters: tuple[Adapter, ...]


class AdapterVersionList(ListAnswer):
    """A page of an adapter's versions, newest first."""

    versions: tuple[AdapterVersion, ...]


class AffinityList(ListAnswer):
    """A page of affinities of current task versions, by task and adapter."""

    affinities: tuple[Affinity, ...]


class OperationList(ListAnswer):
    """A page of operations, newest first."""

    operations: tuple[Operation, ...]


class ProfileList(ListAnswer):
    """A page of a pool's profiles, newest first."""

    profiles: tuple[Profile, ...]


class DeletedTask(Value):
    """The generation without the task."""

    generation: str


class ImportedAffinities(Value):
    """How much was imported, and the generation with it."""

    imported_count: int
    generation: str


class Generations(Value):
    """The newest accepted change, and the newest that routers can be at (empty until there is one)."""

    generation: str
    published_generation: str = ""
