"""What this gateway knows of every replica."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from lorauter.access import caller
from lorauter_gateway.service import Gateway
from lorauter_gateway.service.replica import Found, Replica


def backend_routes(gateway: Gateway) -> APIRouter:
    """Returns the route that describes backends."""
    routes = APIRouter(tags=["lorauter"])

    @routes.get("/v1/backends")
    async def backends() -> dict[str, Any]:
        """Lists the replicas of the caller's own pools: their health, what each holds, and what it does not
        serve and why.

        ``holds`` is null where a replica takes any stored adapter; counts are this gateway's own.
        """
        return {"replicas": [_replica(replica, holds) for replica, holds in gateway.replicas(caller())]}

    return routes


def _replica(replica: Replica, holds: list[str] | None) -> dict[str, Any]:
    endpoint, in_flight = replica.endpoint, replica.in_flight
    return {
        "backend_id": endpoint.backend_id,
        "pool": replica.pool.id,
        "kind": endpoint.kind,
        "url": endpoint.url,
        "takes": endpoint.takes.value,
        "draining": endpoint.draining,
        "state": replica.health.state.value,
        "consecutive_faults": replica.health.faults,
        "ejections": replica.health.ejections,
        "in_flight": in_flight.count,
        "in_flight_limit": in_flight.limit,
        "adapter_slots": endpoint.slots if endpoint.takes.value == "loads" else None,
        "max_rank": endpoint.max_rank or None,
        "holds": holds,
        "quarantined": [
            {"name": name, "found": verdict.found.value, "reason": verdict.reason}
            for name, verdict in sorted(replica.verdicts.items())
            if verdict.found is not Found.PASSED and replica.is_quarantined(name)
        ],
    }
