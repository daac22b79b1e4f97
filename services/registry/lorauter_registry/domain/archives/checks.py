"""What the rows of an archive must say together. Takes them in the archive's order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import singledispatchmethod
from typing import Any

from lorauter.errors import LorauterError
from lorauter.identifiers import BASE
from lorauter.prompts import GenerationSpec, PromptSpec, prompt_digest
from lorauter_registry.domain.archives import rows
from lorauter_registry.domain.archives.columns import Row
from lorauter_registry.domain.archives.framing import refused
from lorauter_registry.domain.examples import ExampleSet

CheckTargets = Callable[[str, Iterable[str]], None]
"""Raises InvalidArgument if a metric, by its name, cannot read one of these targets."""

_REFERENCES = {"pool": "pool", "task_id": "task", "adapter_id": "adapter"}
"""The table that a column refers to."""


class Checks:
    """Raises UnprocessableRequest (ARCHIVE_INCONSISTENT) as soon as rows contradict one another.

    ``pools`` are all of them; ``versions`` all adapters' versions by id and number.
    """

    def __init__(self, generation: int, max_set_bytes: int, check_targets: CheckTargets) -> None:
        self.pools: dict[str, rows.PoolRow] = {}
        self.adapters: dict[str, rows.AdapterRow] = {}
        self.versions: dict[tuple[str, int], rows.AdapterVersionRow] = {}
        self._generation = generation
        self._max_set_bytes = max_set_bytes
        self._check_targets = check_targets
        self._tasks: dict[str, rows.TaskRow] = {}
        self._task_versions: dict[tuple[str, int], rows.TaskVersionRow] = {}
        self._users: dict[tuple[str, int], list[rows.TaskVersionRow]] = {}
        """The versions that use a set of examples which has not come yet."""
        self._profiles: set[tuple[str, str]] = set()
        self._set: tuple[str, int] | None = None
        self._examples = ExampleSet(max_set_bytes)

    def take(self, row: Row) -> None:
        """Takes a row."""
        if getattr(row, "generation", 0) > self._generation:
            raise _contradiction(row, f"is of a generation after the archive's, {self._generation}")
        known: Mapping[str, Collection[str]] = {
            "pool": self.pools,
            "task": self._tasks,
            "adapter": self.adapters,
        }
        for column, table in _REFERENCES.items():
            named = getattr(row, column, None)
            if named is not None and named != BASE and named not in known[table]:
                raise _contradiction(row, f"names {table} {named!r}, which is not in it")
        self._take(row)

    def end_table(self, table: str) -> None:
        """Says that the rows of a table are all there."""
        if table == "task_version":
            self._check_tasks()
        elif table == "validation_example":
            self._end_set()
            self._check_sets()
        elif table == "adapter_version":
            self._check_adapters()
        elif table == "profile":
            for pool in self.pools.values():
                if pool.pinned_profile and (pool.id, pool.pinned_profile) not in self._profiles:
                    raise _contradiction(pool, "pins a profile that is not in it")

    @singledispatchmethod
    def _take(self, row: Any) -> None:
        """Rows of other tables stand for themselves."""

    @_take.register
    def _(self, row: rows.PoolRow) -> None:
        self.pools[row.id] = row

    @_take.register
    def _(self, row: rows.TaskRow) -> None:
        self._tasks[row.id] = row

    @_take.register
    def _(self, row: rows.TaskVersionRow) -> None:
        if row.version > self._tasks[row.task_id].version or row.examples_version > row.version:
            raise _contradiction(row, "is later than the task's current version")
        self._task_versions[row.task_id, row.version] = row
        self._users.setdefault((row.task_id, row.examples_version), []).append(row)

    @_take.register
    def _(self, row: rows.ValidationExampleRow) -> None:
        key = row.task_id, row.version
        if key != self._set:
            self._end_set()
            self._set, self._examples = key, ExampleSet(self._max_set_bytes)
        if row.position != len(self._examples.rows):
            raise _contradiction(row, f"has no example {len(self._examples.rows)} before {row.position}")
        try:
            self._examples.add(row.input, row.target)
        except LorauterError as error:
            raise _contradiction(row, error.message) from None

    @_take.register
    def _(self, row: rows.AdapterRow) -> None:
        self.adapters[row.id] = row

    @_take.register
    def _(self, row: rows.AdapterVersionRow) -> None:
        self.versions[row.adapter_id, row.version] = row

    @_take.register
    def _(self, row: rows.ProfileRow) -> None:
        self._profiles.add((row.pool, row.digest))

    @_take.register
    def _(self, row: rows.AffinityRow) -> None:
        if (row.task_id, row.task_version) not in self._task_versions:
            raise _contradiction(row, f"names version {row.task_version} of its task, which is not in it")
        arm = row.adapter_id, row.adapter_version
        if row.adapter_id != BASE and arm not in self.versions:
            raise _contradiction(
                row, f"names version {row.adapter_version} of its adapter, which is not in it"
            )

    def _check_tasks(self) -> None:
        for task in self._tasks.values():
            if not task.version:
                continue
            current = self._task_versions.get((task.id, task.version))
            prompt = PromptSpec.from_json(task.prompt.model_dump())
            settings = GenerationSpec.from_json(task.generation_settings.model_dump())
            expected = task.metric, prompt_digest(prompt, settings), task.example_count
            if current is None:
                raise _contradiction(task, "lacks its current version")
            if (current.metric, current.prompt_digest, current.example_count) != expected:
                raise _contradiction(task, "has another metric, prompt or size than its current version")

    def _end_set(self) -> None:
        """Compares the set that has ended with the versions that use it."""
        if self._set is None:
            return
        examples, users = self._examples, self._users.pop(self._set, [])
        if not users:
            raise refused(
                "ARCHIVE_INCONSISTENT", f"has examples that no version uses, {' '.join(map(str, self._set))}"
            )
        for version in users:
            if version.example_count != len(examples.rows):
                raise _contradiction(version, f"counts other examples than the {len(examples.rows)} it has")
            if version.examples_digest not in ("", examples.digest):
                raise _contradiction(version, "has other examples than its digest says")
            if version.version == self._tasks[version.task_id].version:
                self._read_targets(version, examples)

    def _read_targets(self, version: rows.TaskVersionRow, examples: ExampleSet) -> None:
        try:
            self._check_targets(version.metric, (target for _, target in examples.rows))
        except LorauterError as error:
            raise _contradiction(version, error.message) from None

    def _check_sets(self) -> None:
        for users in self._users.values():
            raise _contradiction(users[0], "lacks its examples")

    def _check_adapters(self) -> None:
        newest: dict[str, int] = {}
        for adapter_id, number in self.versions:
            newest[adapter_id] = max(number, newest.get(adapter_id, 0))
        for adapter in self.adapters.values():
            if newest.get(adapter.id) != adapter.latest_version:
                raise _contradiction(adapter, f"lacks its newest version {adapter.latest_version}")
            for alias, number in adapter.aliases.items():
                if (adapter.id, number) not in self.versions:
                    raise _contradiction(
                        adapter, f"has alias {alias!r} for version {number}, which is not in it"
                    )


def _contradiction(row: Row, problem: str) -> LorauterError:
    names = ("id", "pool", "task_id", "adapter_id", "task_version", "adapter_version", "version", "digest")
    key = " ".join(str(value) for name in names if (value := getattr(row, name, None)) not in (None, ""))
    return refused(
        "ARCHIVE_INCONSISTENT", f"contradicts itself: {row.table} {key[:300]} {problem}", table=row.table
    )
