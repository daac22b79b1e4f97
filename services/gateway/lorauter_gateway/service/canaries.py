"""Checks by reading a fixed text that a replica has an adapter, and the right one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from lorauter.canary import CANARY_TEXT, agrees, has_effect
from lorauter.errors import LorauterError
from lorauter_gateway.domain.plan import Members, WeightedAdapter, members_of
from lorauter_gateway.ports import BackendFailed, Takes
from lorauter_gateway.service.replica import Found, Replica, Verdict

_REFERENCES = 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a name on the replica, or a set; ``adapters`` empty where they are not known."""

    served_name: str
    adapters: tuple[WeightedAdapter, ...] = ()

    @property
    def members(self) -> Members:
        """What it adds to the base."""
        return members_of((adapter.digest, adapter.weight) for adapter in self.adapters)

    @property
    def key(self) -> str:
        """What its verdict is kept under."""
        return self.served_name or self.adapters[0].digest


Reading = Sequence[float]


class Canaries:
    """Reads with a replica's adapter, with its base, and where the pool has an engine with that, too."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int, str], asyncio.Task[Verdict]] = {}
        self._references: dict[tuple[str, int, Members], Reading] = {}

    async def check(self, replica: Replica, subject: Subject) -> Verdict:
        """Returns what is found, and remembers it on the replica; one check at a time for all who ask.

        Raises BackendFailed. It goes on when a caller is cancelled.
        """
        key = (replica.id, replica.incarnation, subject.key)
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._check(replica, subject))
            self._running[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: tuple[str, int, str], task: asyncio.Task[Verdict]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked has it; nobody may be left

    async def _check(self, replica: Replica, subject: Subject) -> Verdict:
        incarnation = replica.incarnation
        verdict = await self._judge(replica, subject)
        if replica.incarnation == incarnation:
            replica.judged(subject.key, verdict)
        return verdict

    async def _judge(self, replica: Replica, subject: Subject) -> Verdict:
        base = await self._reference(replica, Subject(""))
        reading = await self._read(replica, subject)
        again = await self._read(replica, Subject(""))
        seen = has_effect(base, reading, again)
        if seen is False:
            return Verdict(Found.ABSENT, "it answers a fixed text as the base does, so it is not there")
        is_listed = replica.takes is Takes.LISTED
        if seen is None and is_listed:
            return Verdict(
                Found.ABSENT, "the server does not tell log-probabilities that show that it is there"
            )
        reference = replica.pool.reference() if replica.takes is not Takes.SETS and subject.adapters else None
        if reference is None:
            return Verdict(Found.PASSED)
        try:
            expected_base = await self._reference(reference, Subject(""))
            expected = await self._reference(reference, Subject("", subject.adapters))
        except BackendFailed:
            return Verdict(Found.PASSED)
        if agrees(base, reading, expected_base, expected) is False:
            reason = f"it does to a fixed text other than what {reference.endpoint.backend_id} makes of it"
            return Verdict(Found.QUARANTINED, reason)
        return Verdict(Found.PASSED)

    async def _reference(self, reference: Replica, subject: Subject) -> Reading:
        key = (reference.id, reference.incarnation, subject.members)
        if key not in self._references:
            while len(self._references) >= _REFERENCES:
                del self._references[next(iter(self._references))]
            self._references[key] = await self._read(reference, subject)
        return self._references[key]

    async def _read(self, replica: Replica, subject: Subject) -> Reading:
        base_model = replica.pool.snapshot.base_model
        driver = replica.endpoint.driver
        adapters = subject.adapters if replica.takes is Takes.SETS else ()
        try:
            return await driver.read(CANARY_TEXT, adapters, subject.served_name, base_model)
        except LorauterError as refused:
            raise BackendFailed(refused) from None
