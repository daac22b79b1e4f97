"""Projects the registry to a snapshot of exactly one generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from lorauter import tracing
from lorauter.encoder import Encoder
from lorauter.identifiers import BASE
from lorauter.index import ExampleSet
from lorauter.routing import TaskExamples
from lorauter.routing.fitting import Memory, Refit, refit
from lorauter.routing.model import (
    ADAPTERS_PATH,
    Adapter,
    Affinity,
    Backend,
    Composition,
    Pool,
    Profile,
    Serving,
    Snapshot,
    Task,
)
from lorauter.store import read, tables
from lorauter_worker.domain.kept import kept_affinities
from lorauter_worker.domain.versions import servable
from lorauter_worker.service.announcing import manifests_of
from lorauter_worker.service.representations import Key, Representations, key_of
from lorauter_worker.service.state import (
    AdapterState,
    PoolState,
    RegistryState,
    TaskState,
    read_active,
    read_generation,
    read_state,
)

_POSTGRES = {"db.system.name": "postgresql"}


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A pool's fit: the task versions and examples behind it, and the digest of the profile in use then."""

    keys: Sequence[Key]
    based_on: str
    examples: Sequence[TaskExamples]
    refit: Refit
    memory: Memory


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A snapshot, the vectors behind it, and the task versions (id, version) that it holds.

    ``fitted`` says by pool what the profile comes from.
    """

    snapshot: Snapshot
    examples: Sequence[ExampleSet]
    tasks: Sequence[tuple[str, int]]
    fitted: Mapping[str, Fitted]

    def follows(self, active: Mapping[str, tables.Profile]) -> bool:
        """Returns whether it is what these active profiles lead to: theirs, or what was chosen from them.

        It is not where another worker projected the same generation from other constants.
        """
        return all(
            row.digest in (pool.profile.digest, self.fitted[pool_id].based_on)
            for pool_id, pool in self.snapshot.pools.items()
            if (row := active.get(pool_id)) is not None
        )


class Projector:
    """Projects tenants; remembers representations and each tenant's newest projection."""

    def __init__(self, engine: Engine, encoder: Encoder, examples: int) -> None:
        self._engine = engine
        self._encoder = encoder
        self._representations = Representations(engine, encoder, examples)
        self._newest: dict[str, Projection] = {}

    def project(self, tenant: str, deadline: float) -> Projection | None:
        """Returns the projection of the tenant's newest generation; None before its first write.

        Everything is read in one transaction; encoding, of which only content matters, comes after it.
        Raises OutOfTime if ``deadline`` (of time.monotonic) passes while texts are encoded.
        """
        with tracing.span("read", "client", _POSTGRES), read(self._engine) as session:
            generation = read_generation(session, tenant)
            newest = self._newest.get(tenant)
            if generation is None:
                return None
            if newest and newest.snapshot.generation == generation.value:
                active = read_active(session, tenant)
                if newest.follows(active):
                    return newest
            state = read_state(session, tenant)
            assert state is not None
            tasks = [task for pool in state.pools.values() for task in pool.tasks]
            texts = self._representations.routed_texts(session, tenant, tasks)
        self._representations.complete(tenant, texts, deadline)
        self._representations.keep_only(tenant, tasks)
        with tracing.span("fit"):
            projection = self._assemble(state)
        self._newest[tenant] = projection
        return projection

    def _assemble(self, state: RegistryState) -> Projection:
        examples: list[ExampleSet] = []
        pools: dict[str, Pool] = {}
        fitted: dict[str, Fitted] = {}
        for pool_id, pool in sorted(state.pools.items()):
            pools[pool_id], parts, fitted[pool_id] = self._pool(state.tenant, pool)
            examples.extend(parts)
        snapshot = Snapshot(state.tenant, state.generation, "", self._encoder.digest, pools)
        tasks = [(part.task_id, part.version) for part in examples]
        return Projection(snapshot, examples, tasks, fitted)

    def _pool(self, tenant: str, pool: PoolState) -> tuple[Pool, list[ExampleSet], Fitted]:
        tasks: list[Task] = []
        examples: list[ExampleSet] = []
        fitted_on: list[TaskExamples] = []
        keys: list[Key] = []
        for state in sorted(pool.tasks, key=lambda task: task.row.id):
            known = self._representations.get(tenant, state)
            if known is None:
                continue
            keys.append(key_of(tenant, state))
            fitted_on.append(known.examples)
            vectors = known.examples.vectors
            examples.append(ExampleSet(pool.row.id, state.row.id, state.version.version, vectors))
            tasks.append(
                Task(
                    task_id=state.row.id,
                    version=state.version.version,
                    metric=state.version.metric,
                    tags=frozenset(state.row.tags),
                    example_count=state.version.example_count,
                    centroid=known.centroid,
                    terms=known.examples.total,
                    affinities=_affinities(state),
                    compositions=_compositions(state, pool.routed),
                )
            )
        fitted = self._refitted(tenant, pool, fitted_on, keys)
        projected = Pool(
            pool_id=pool.row.id,
            base_model=pool.row.base_model,
            base_model_aliases=tuple(pool.row.aliases),
            untypical_policy=pool.row.untypical_policy,
            profile=_profile(fitted, pool.pinned),
            tasks=tuple(tasks),
            adapters=_adapters(pool.adapters, pool.routed),
            backends=tuple(_backend(row) for row in pool.backends),
            serving=_serving(pool.row),
            manifests=manifests_of(pool.manifests, pool.adapters),
        )
        return projected, examples, fitted

    def _refitted(
        self, tenant: str, pool: PoolState, examples: Sequence[TaskExamples], keys: Sequence[Key]
    ) -> Fitted:
        """Returns what is fitted on the examples, anew only when they or the constants in use changed."""
        known = self._newest[tenant].fitted.get(pool.row.id) if tenant in self._newest else None
        active = pool.active.digest if pool.active else ""
        if known and known.keys == keys and active in (known.based_on, known.refit.profile.digest):
            return known
        before = Profile(active, pool.active.constants) if pool.active else None
        memory = known.memory if known else Memory()
        return Fitted(keys, active, examples, refit(examples, before, memory), memory)


def _profile(fitted: Fitted, pinned: tables.Profile | None) -> Profile:
    """Returns what was fitted; a pinned profile gives its constants, and the scatter stays today's."""
    profile = fitted.refit.profile
    if pinned is None:
        return profile
    return Profile(pinned.digest, pinned.constants, {}, profile.scatter)


def _backend(row: tables.Backend) -> Backend:
    limits = row.limits
    return Backend(
        backend_id=row.id,
        kind=row.kind.lower(),
        url=row.url,
        draining=row.state != "ACTIVE",
        adapter_slots=limits.get("adapter_slots", 0),
        max_rank=limits.get("max_rank", 0),
        max_concurrent_requests=limits.get("max_concurrent_requests", 0),
        adapters_path=limits.get("adapters_path") or ADAPTERS_PATH,
        shards=limits.get("shards", 0),
    )


def _serving(row: tables.Pool) -> Serving:
    return Serving(
        refuse_degraded=row.serving.get("fallback") == "REFUSE",
        compose_on_demand=row.serving.get("compose_on_demand", False),
    )


def _adapters(adapters: Sequence[AdapterState], routed: Mapping[str, int]) -> tuple[Adapter, ...]:
    return tuple(
        known
        for adapter in adapters
        for known in servable(adapter.row.id, adapter.row.aliases, adapter.versions, routed[adapter.row.id])
    )


def _compositions(task: TaskState, routed: Mapping[str, int]) -> tuple[Composition, ...]:
    """Returns what was measured of the compositions whose members all take part in decisions."""
    found = (
        Composition(
            name=row.name,
            members=tuple((each["adapter_id"], each["version"], each["weight"]) for each in row.members),
            score=row.score,
            count=row.count,
            standard_error=row.standard_error,
            gain=row.gain,
            gain_error=row.gain_error,
        )
        for row in task.compositions
    )
    return tuple(
        each
        for each in found
        if all(routed.get(adapter_id) == version for adapter_id, version, _ in each.members)
    )


def _affinities(task: TaskState) -> tuple[Affinity, ...]:
    rows = task.affinities
    is_complete = any(row.adapter_id == BASE or row.imported for row in rows)
    measured = (
        Affinity(row.adapter_id, row.adapter_version, row.shrunk_score, row.count, row.standard_error)
        for row in rows
    )
    return kept_affinities(measured, is_complete)
