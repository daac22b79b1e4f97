"""What lists and other calls answer that return no single resource.

A list's empty ``next_page_token`` marks its last page.
"""

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


class PoolList(Value):
    """A page of pools, by id."""

    pools: tuple[Pool, ...]
    next_page_token: str = ""


class BackendList(Value):
    """A page of backends, by id."""

    backends: tuple[Backend, ...]
    next_page_token: str = ""


class TaskList(Value):
    """A page of tasks, by id."""

    tasks: tuple[Task, ...]
    next_page_token: str = ""


class ValidationExampleList(Value):
    """A page of the examples of a task's version, in their order."""

    examples: tuple[ValidationExample, ...]
    version: int
    next_page_token: str = ""


class AdapterList(Value):
    """A page of adapters, by id."""

    adapters: tuple[Adapter, ...]
    next_page_token: str = ""


class AdapterVersionList(Value):
    """A page of an adapter's versions, newest first."""

    versions: tuple[AdapterVersion, ...]
    next_page_token: str = ""


class AffinityList(Value):
    """A page of affinities of current task versions, by task and adapter."""

    affinities: tuple[Affinity, ...]
    next_page_token: str = ""


class OperationList(Value):
    """A page of operations, newest first."""

    operations: tuple[Operation, ...]
    next_page_token: str = ""


class ProfileList(Value):
    """A page of a pool's profiles, newest first."""

    profiles: tuple[Profile, ...]
    next_page_token: str = ""


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
