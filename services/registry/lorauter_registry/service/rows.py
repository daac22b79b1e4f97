"""Turns rows of PostgreSQL into the registry's resources."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lorauter.identifiers import encode_generation
from lorauter.store import tables
from lorauter.store.serving import served_version
from lorauter_registry.domain.adapters import state_at
from lorauter_registry.domain.resources import (
    Adapter,
    AdapterState,
    AdapterVersion,
    Affinity,
    Backend,
    BackendKind,
    BackendState,
    GenerationSettings,
    LinearModule,
    MatchingProgress,
    Operation,
    OperationState,
    Pool,
    Profile,
    Prompt,
    Task,
    TaskState,
    UntypicalPolicy,
)
from lorauter_registry.domain.serving import BackendLimits, ServingPolicy
from lorauter_registry.service.base import Resource, etag_of


def _common(row: Resource) -> dict[str, Any]:
    return {
        "etag": etag_of(row),
        "generation": encode_generation(row.generation, row.tenant),
        "create_time": row.create_time,
        "update_time": row.update_time,
    }


def pool_of(row: tables.Pool) -> Pool:
    """Returns the pool of a row."""
    return Pool(
        id=row.id,
        description=row.description,
        base_model=row.base_model,
        base_revision=row.base_revision,
        weights_digest=row.weights_digest,
        tokenizer_digest=row.tokenizer_digest,
        aliases=tuple(row.aliases),
        modules=tuple(
            LinearModule(name=name, in_features=shape[0], out_features=shape[1])
            for name, shape in sorted(row.modules.items())
        ),
        untypical_policy=UntypicalPolicy(row.untypical_policy),
        serving=ServingPolicy.model_validate(row.serving),
        **_common(row),
    )


def backend_of(row: tables.Backend) -> Backend:
    """Returns the backend of a row."""
    return Backend(
        id=row.id,
        pool=row.pool,
        kind=BackendKind(row.kind),
        url=row.url,
        state=BackendState(row.state),
        limits=BackendLimits.model_validate(row.limits),
        **_common(row),
    )


def task_of(row: tables.Task, scores: dict[str, Any] | None = None) -> Task:
    """Returns the task of a row, with what was measured on its current version."""
    return Task(
        id=row.id,
        pool=row.pool,
        description=row.description,
        metric=row.metric,
        prompt=Prompt.model_validate(row.prompt),
        generation_settings=GenerationSettings.model_validate(row.generation_settings),
        tags=tuple(row.tags),
        version=row.version,
        example_count=row.example_count,
        state=TaskState(row.state),
        **_common(row),
        **(scores or {}),
    )


def version_of(row: tables.AdapterVersion, now: datetime) -> AdapterVersion:
    """Returns the version of a row, in its state as of ``now``."""
    return AdapterVersion(
        adapter_id=row.adapter_id,
        version=row.version,
        digest=row.digest,
        source=row.source,
        base_model=row.base_model,
        base_assumed=row.base_assumed,
        rank=row.rank,
        alpha=row.alpha,
        rslora=row.rslora,
        target_modules=tuple(row.target_modules),
        size_bytes=row.size_bytes,
        state=state_at(AdapterState(row.state), row.pins_until, now),
        state_reason=row.state_reason,
        pins_until=row.pins_until,
        successor=row.successor,
        create_time=row.create_time,
    )


def adapter_of(
    row: tables.Adapter,
    latest: tables.AdapterVersion,
    states: Sequence[tuple[int, AdapterState]],
    now: datetime,
) -> Adapter:
    """Returns the adapter of a row, of its newest version's, and of (version, state) of all as of ``now``."""
    return Adapter(
        id=row.id,
        pool=row.pool,
        description=row.description,
        tags=tuple(row.tags),
        latest=version_of(latest, now),
        aliases=dict(row.aliases),
        served_version=served_version(row.aliases, dict(states)),
        **_common(row),
    )


def affinity_of(row: tables.Affinity, pool: str) -> Affinity:
    """Returns the affinity of a row; its pool is its task's."""
    return Affinity(
        pool=pool,
        task_id=row.task_id,
        task_version=row.task_version,
        adapter_id=row.adapter_id,
        adapter_version=row.adapter_version,
        score=row.score,
        count=row.count,
        standard_error=row.standard_error,
        metric=row.metric,
        metric_version=row.metric_version,
        prompt_digest=row.prompt_digest,
        round=row.round,
        imported=row.imported,
        measure_time=row.measure_time,
        shrunk_score=row.shrunk_score,
        eligible=row.eligible,
        judged_score=row.judged_score,
        judged_count=row.judged_count,
        lift=row.lift,
        lift_error=row.lift_error,
        likelihood=row.likelihood,
        place=row.place,
    )


def operation_of(row: tables.Operation) -> Operation:
    """Returns the operation of a row."""
    return Operation(
        id=row.id,
        kind=row.kind,
        pool=row.pool,
        state=OperationState(row.state),
        done=row.done,
        total=row.total,
        message=row.message,
        error=row.error,
        create_time=row.create_time,
        update_time=row.update_time,
        end_time=row.end_time,
        cancel_requested=row.cancel_requested,
        matching=_matching(row) if row.kind == "matching" else None,
    )


def _matching(row: tables.Operation) -> MatchingProgress:
    asked = {
        "strategy": row.request.get("strategy", ""),
        "max_evaluations": row.request.get("max_evaluations") or 0,
    }
    known = MatchingProgress.model_fields
    return MatchingProgress.model_validate(
        {**asked, **{name: value for name, value in row.progress.items() if name in known}}
    )


def profile_of(row: tables.Profile) -> Profile:
    """Returns the profile of a row."""
    return Profile(
        digest=row.digest,
        pool=row.pool,
        generation=encode_generation(row.generation, row.tenant),
        constants=row.constants,
        figures=row.figures,
        active=row.active,
        create_time=row.create_time,
    )
