"""Turns a pool's rows into what matching plans with."""

from __future__ import annotations

from lorauter.errors import InvalidArgument
from lorauter.metrics import metric
from lorauter.telemetry import get_logger
from lorauter_worker.domain.cells import Arm, MatchingTask, Measured
from lorauter_worker.domain.versions import matched_versions
from lorauter_worker.service.state import PoolState

_log = get_logger(__name__)


def matching_arms(pool: PoolState) -> list[Arm]:
    """Returns the adapters' versions that are measured; the base is always an arm and not among them."""
    return [
        Arm(adapter.row.id, version.version, version.digest)
        for adapter in pool.adapters
        for version in adapter.versions
        if version.version in matched_versions(adapter.row.aliases, adapter.versions)
    ]


def matching_tasks(pool: PoolState, most: int) -> list[MatchingTask]:
    """Returns the tasks with at most ``most`` examples each; a task of an unknown metric is left out."""
    tasks = []
    for state in pool.tasks:
        try:
            version = metric(state.version.metric).version
        except InvalidArgument:
            _log.error("worker.task.metric_unknown", task=state.row.id, metric=state.version.metric)
            continue
        tasks.append(
            MatchingTask(
                task_id=state.row.id,
                created=state.row.create_time,
                version=state.version.version,
                metric=state.version.metric,
                metric_version=version,
                prompt_digest=state.version.prompt_digest,
                examples=min(most, state.version.example_count),
                state=state.row.state,
                measured={
                    (row.adapter_id, row.adapter_version): Measured(
                        row.metric, row.metric_version, row.prompt_digest, row.measure_time
                    )
                    for row in state.affinities
                },
            )
        )
    return tasks
