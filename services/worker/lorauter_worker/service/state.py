"""Reads a tenant's pools, tasks, adapters and best affinities as of one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text
from sqlmodel import Session, col, select

from lorauter.store import tables
from lorauter.store.manifest_rows import announced
from lorauter.store.measured import best_affinities, measured_tasks
from lorauter_worker.domain.kept import KEPT
from lorauter_worker.domain.versions import Version, active_versions, routed_version
from lorauter_worker.service.composition_rows import read_compositions


@dataclass(slots=True)
class TaskState:
    """A task with the version that is current and the best of what was measured on it."""

    row: tables.Task
    version: tables.TaskVersion
    affinities: list[Any] = field(default_factory=list)
    """Rows as best_affinities() returns them."""
    compositions: list[tables.Composition] = field(default_factory=list)
    """Of the current version, largest gain first."""


@dataclass(slots=True)
class AdapterState:
    """An adapter with all its versions, oldest first."""

    row: tables.Adapter
    versions: list[Version] = field(default_factory=list)


@dataclass(slots=True)
class PoolState:
    """A pool with everything in it; tasks are those that have a validation set.

    ``active`` is the profile that was published last, ``pinned`` one that an operator restored.
    """

    row: tables.Pool
    active: tables.Profile | None
    pinned: tables.Profile | None
    backends: list[tables.Backend] = field(default_factory=list)
    tasks: list[TaskState] = field(default_factory=list)
    adapters: list[AdapterState] = field(default_factory=list)
    routed: dict[str, int] = field(default_factory=dict)
    """The version of each adapter that takes part in decisions, 0 if none does."""
    manifests: Sequence[tables.PoolManifest] = ()
    """What instances may have loaded: the published one and the one before it, newest first."""


@dataclass(frozen=True, slots=True)
class RegistryState:
    """All of a tenant's registry that routing depends on, of exactly one generation."""

    tenant: str
    generation: int
    pools: Mapping[str, PoolState]


_LOCK = text("SELECT 1 FROM generation WHERE tenant = :tenant FOR UPDATE")


def lock_generation(connection: Connection, tenant: str) -> None:
    """Waits for the tenant's writes and holds off more until the transaction ends.

    To be called before rows of tasks are locked: every write of the registry takes them in this order.
    """
    connection.execute(_LOCK, {"tenant": tenant})


def read_generation(session: Session, tenant: str) -> tables.Generation | None:
    """Returns the tenant's counter, or None before its first write."""
    return session.get(tables.Generation, tenant)


def read_state(session: Session, tenant: str) -> RegistryState | None:
    """Returns the tenant's state; None before its first write. The session sees one moment."""
    generation = read_generation(session, tenant)
    if generation is None:
        return None
    rows = session.exec(select(tables.Pool).where(tables.Pool.tenant == tenant)).all()
    active, pinned = read_active(session, tenant), _pinned(session, tenant, rows)
    pools = {row.id: PoolState(row, active.get(row.id), pinned.get(row.id)) for row in rows}
    for backend in session.exec(select(tables.Backend).where(tables.Backend.tenant == tenant)):
        pools[backend.pool].backends.append(backend)
    _read_adapters(session, tenant, pools)
    _read_tasks(session, tenant, pools)
    for pool in pools.values():
        pool.manifests = announced(session, tenant, pool.row.id)
    return RegistryState(tenant, generation.value, pools)


def read_active(session: Session, tenant: str) -> dict[str, tables.Profile]:
    """Returns the profiles that were published last, by pool."""
    profile = tables.Profile
    rows = session.exec(select(profile).where(profile.tenant == tenant, col(profile.active)))
    return {row.pool: row for row in rows}


def _pinned(session: Session, tenant: str, pools: Sequence[tables.Pool]) -> dict[str, tables.Profile]:
    found = {}
    for pool in pools:
        if pool.pinned_profile:
            profile = session.get(tables.Profile, (tenant, pool.id, pool.pinned_profile))
            if profile is not None:
                found[pool.id] = profile
    return found


def _read_adapters(session: Session, tenant: str, pools: Mapping[str, PoolState]) -> None:
    adapter, version = tables.Adapter, tables.AdapterVersion
    both = (
        select(adapter, version)
        .join(version)
        .where(adapter.tenant == tenant, col(adapter.pool).in_(pools))
        .order_by(col(version.version))
    )
    adapters: dict[str, AdapterState] = {}
    for owner, row in session.exec(both):
        state = adapters.setdefault(owner.id, AdapterState(owner))
        state.versions.append(
            Version(row.version, row.digest, row.state, row.pins_until, row.successor, row.rank)
        )
    # only between active versions does it matter how well each is known
    rivals = [id_ for id_, state in adapters.items() if len(active_versions(state.versions)) > 1]
    measured = measured_tasks(session, tenant, rivals) if rivals else {}
    for id_, state in adapters.items():
        pool = pools[state.row.pool]
        pool.adapters.append(state)
        pool.routed[id_] = routed_version(state.row.aliases, state.versions, measured.get(id_, {}))


def _read_tasks(session: Session, tenant: str, pools: Mapping[str, PoolState]) -> None:
    task, version = tables.Task, tables.TaskVersion
    of_pools = (task.tenant == tenant, col(task.pool).in_(pools))
    current = select(task, version).join(version).where(*of_pools, version.version == task.version)
    tasks = {row.id: TaskState(row, version_row) for row, version_row in session.exec(current)}
    routed = {id_: version for pool in pools.values() for id_, version in pool.routed.items() if version}
    for row in best_affinities(session, tenant, routed, KEPT):
        if row.task_id in tasks:
            tasks[row.task_id].affinities.append(row)
    for composition in read_compositions(session, tenant):
        if composition.task_id in tasks:
            tasks[composition.task_id].compositions.append(composition)
    for state in tasks.values():
        pools[state.row.pool].tasks.append(state)
