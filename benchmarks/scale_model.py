"""From unit costs that were measured to what a large deployment needs. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be served: ``pools`` share tasks and adapters evenly.

    ``requests_per_second`` come evenly; ``known`` of them, 0..1, are queries that the router has seen.
    ``busy``, 0..1, is how much of each core is to be used at most. ``adapter_bytes`` is a weights file.
    """

    tasks: int
    adapters: int
    pools: int
    requests_per_second: float
    known: float = 0.5
    busy: float = 0.6
    adapter_bytes: float = 40e6


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What one of each costs: bytes, seconds, or evaluations, as their names say.

    ``pair`` is an adapter measured on a task; ``request`` one that is routed.
    """

    gateway_request_seconds: float
    router_known_seconds: float
    router_new_seconds: float
    router_task_bytes: float
    router_adapter_bytes: float
    router_fixed_bytes: float
    root_task_bytes: float
    root_adapter_bytes: float
    database_task_bytes: float
    database_pair_bytes: float
    evaluations_per_pair: float
    refit_task_seconds: float
    state_pair_seconds: float
    encode_adapter_seconds: float


def slope(points: Mapping[float, float]) -> float:
    """Returns what one more costs, from the largest two of several sizes."""
    (x0, y0), (x1, y1) = sorted(points.items())[-2:]
    return (y1 - y0) / (x1 - x0)


def needed(target: Target, unit: UnitCosts) -> dict[str, float]:
    """Returns what the target needs: cores, replicas, bytes, and seconds of a change.

    A router holds every pool of its tenant. ``change_seconds`` is what publishing one change takes the worker
    for the pool that it is in and for the root, which names every adapter of the tenant.
    """
    tasks, adapters = target.tasks / target.pools, target.adapters / target.pools
    pairs = target.pools * tasks * adapters
    share = target.known * unit.router_known_seconds + (1 - target.known) * unit.router_new_seconds
    rate = target.requests_per_second / target.busy
    router_bytes = (
        unit.router_fixed_bytes
        + target.tasks * unit.router_task_bytes
        + target.adapters * unit.router_adapter_bytes
    )
    return {
        "gateway_cores": rate * unit.gateway_request_seconds,
        "gateway_replicas": float(math.ceil(rate * unit.gateway_request_seconds)),
        "router_cores": rate * share,
        "router_replicas": float(math.ceil(rate * share)),
        "router_bytes": router_bytes,
        "root_bytes": target.tasks * unit.root_task_bytes + target.adapters * unit.root_adapter_bytes,
        "database_bytes": target.tasks * unit.database_task_bytes + pairs * unit.database_pair_bytes,
        "store_bytes": target.adapters * target.adapter_bytes,
        "index_points": float(target.tasks * 21),
        "evaluations": pairs * unit.evaluations_per_pair,
        "evaluations_of_one_adapter": tasks * unit.evaluations_per_pair,
        "evaluations_of_one_task": adapters * unit.evaluations_per_pair,
        "change_seconds": (
            pairs * unit.state_pair_seconds
            + tasks * unit.refit_task_seconds
            + target.adapters * unit.encode_adapter_seconds
        ),
    }
