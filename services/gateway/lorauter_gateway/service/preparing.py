"""Has a replica ready for an option, each kind in its way, and says what it is to be asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from lorauter import tracing
from lorauter.identifiers import backend_name
from lorauter.telemetry import get_logger
from lorauter_gateway.domain.plan import Option, Plan, Skipped, Why, fitted, plan_named, plan_set
from lorauter_gateway.ports import BackendFailed, BooksAway, Composite, Composites, Takes
from lorauter_gateway.service.canaries import Subject
from lorauter_gateway.service.replica import Found, Replica, Visit
from lorauter_gateway.service.replicas import Replicas
from lorauter_gateway.service.residence import GONE

_log = get_logger(__name__)

_NOT_LISTED = "the backend's instances load no such adapter or composite at start-up"
_NOT_COMPOSED = "the backend takes one adapter per request, and the weighted set is not written as one"


class Preparer:
    """Knows how each way of taking adapters serves an option. ``composites`` None: none is written."""

    def __init__(self, replicas: Replicas, composites: Composites | None) -> None:
        self._replicas = replicas
        self._composites = composites
        self._beside: set[asyncio.Task[Any]] = set()

    async def prepare(self, visit: Visit, option: Option, keeps_decision: bool) -> Plan:
        """Returns what to ask of the replica. Raises Skipped, BackendFailed.

        What is loaded stays until the visit is closed.
        """
        replica = visit.replica
        if option.is_base:
            return plan_set(option)
        if replica.takes is Takes.SETS:
            return self._plan_set(replica, option, keeps_decision)
        try:
            if replica.takes is Takes.LISTED:
                return await self._plan_listed(replica, option, keeps_decision)
            return await self._plan_loaded(visit, option, keeps_decision)
        except BackendFailed as failure:
            failure.try_elsewhere = True  # nothing was generated yet
            raise

    def placed_by(self, option: Option) -> str:
        """Returns the name that decides where replicas load an option, empty for the base."""
        if option.is_base:
            return ""
        if option.is_single:
            return backend_name(option.adapters[0].digest)
        return repr(option.members)

    def lacks_slot(self, replica: Replica, name: str) -> bool:
        """Whether a replica had no slot for an option a moment ago."""
        residence = self._replicas.residence(replica)
        return residence is not None and residence.lacks_slot(name)

    def forget(self, replica: Replica, served_name: str) -> None:
        """Notes that a replica does not know what it was asked for."""
        replica.verdicts.pop(served_name, None)
        residence = self._replicas.residence(replica)
        if residence is not None and served_name:
            residence.forget(served_name)

    def _plan_set(self, replica: Replica, option: Option, keeps_decision: bool) -> Plan:
        option = _fitted(option, replica, keeps_decision)
        for adapter in option.applied:
            verdict = replica.verdicts.get(adapter.digest)
            if verdict is None and replica.may_canary(adapter.digest):
                self._spawn(self._check(replica, Subject("", (replace(adapter, weight=1.0),))))
            elif replica.is_quarantined(adapter.digest):
                assert verdict is not None
                raise Skipped(Why.QUARANTINED, f"{adapter.adapter_id} is quarantined there: {verdict.reason}")
        return plan_set(option)

    async def _check(self, replica: Replica, subject: Subject) -> None:
        try:
            await self._replicas.canaries.check(replica, subject)
        except BackendFailed as failure:
            _log.info("gateway.canary.unread", replica=replica.id, problem=failure.error.message)

    async def _plan_listed(self, replica: Replica, option: Option, keeps_decision: bool) -> Plan:
        replica.look()
        catalog = replica.pool.catalog
        entries = [(option, entry) for entry in catalog.named(option.members)]
        if not entries and not option.is_single:
            smaller = _fitted(option, replica, keeps_decision)
            entries = [(smaller, entry) for entry in catalog.named(smaller.members)]
        problem = Skipped(Why.NOT_LISTED, _NOT_LISTED)
        for fitting, entry in entries:
            verdict = replica.verdicts.get(entry.name)
            if verdict is None:
                subject = Subject(entry.name, fitting.applied)
                verdict = await self._replicas.canaries.check(replica, subject)
            if verdict.found is Found.PASSED:
                return plan_named(fitting, entry.name)
            why = Why.ABSENT if verdict.found is Found.ABSENT else Why.QUARANTINED
            problem = Skipped(why, f"{replica.endpoint.backend_id} does not serve it: {verdict.reason}")
        raise problem

    async def _plan_loaded(self, visit: Visit, option: Option, keeps_decision: bool) -> Plan:
        replica = visit.replica
        option = _fitted(option, replica, keeps_decision)
        if option.is_single:
            name = backend_name(option.adapters[0].digest)
        else:
            name = (await self._composite(replica, option)).name
        residence = self._replicas.residence(replica)
        if residence is None:
            raise Skipped(Why.NO_BACKEND, GONE)
        await residence.hold(Subject(name, option.applied), may_wait=option.is_single)
        visit.holds(lambda: residence.drop(name))
        return plan_named(option, name)

    async def _composite(self, replica: Replica, option: Option) -> Composite:
        pool = replica.pool
        if self._composites is None or not pool.snapshot.serving.compose_on_demand:
            raise Skipped(Why.NOT_WRITTEN, _NOT_COMPOSED)
        try:
            return await self._composites.find(pool.tenant, pool.id, replica.endpoint, option.applied)
        except BooksAway:
            raise Skipped(Why.BOOKS_AWAY, "Redis, which says which composites are written, is away") from None

    def _spawn(self, work: Any) -> None:
        with tracing.outside():
            task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Stops what runs beside requests."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)


def _fitted(option: Option, replica: Replica, keeps_decision: bool) -> Option:
    fitting = fitted(option, replica.endpoint.max_rank)
    if keeps_decision and fitting is not option:
        raise Skipped(Why.RANK, fitting.degraded_reason)
    return fitting
