"""Takes back composites of adapters that were recalled, so that gateways ask no server for them any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from sqlalchemy import Engine, select

from lorauter.compositions_wanted import Member, Refusal, Written, read_fate, tenant_of
from lorauter.errors import InvalidArgument, Unavailable
from lorauter.store import tables
from lorauter.store.session import translated_errors
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.ports import WantedCompositions

_log = get_logger(__name__)

_VERSIONS = tables.AdapterVersion.metadata.tables["adapter_version"]


class Recalls:
    """Compares what is written with what is active. Folders stay in the store; nobody is told of them."""

    def __init__(
        self, engine: Engine, wanted: WantedCompositions, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._wanted = wanted
        self._clock = clock
        self._is_away = False

    def once(self) -> None:
        """Takes back every composite with an adapter that is not active; forgets refusals that are over.

        Without Redis there is nothing to take back. Raises Unavailable (DATABASE_UNAVAILABLE).
        """
        try:
            self._look()
        except Unavailable as error:
            if error.reason != "REDIS_UNAVAILABLE":
                raise
            if not self._is_away:
                _log.warning("worker.recalls.redis_away", problem=error.message)
            self._is_away = True
        else:
            self._is_away = False

    def _look(self) -> None:
        found = {key: readable(fate) for key, fate in self._wanted.fates().items()}
        written = {key: fate for key, fate in found.items() if isinstance(fate, Written)}
        gone = self._recalled(written)
        over = [
            key
            for key, fate in found.items()
            if fate is None or (isinstance(fate, Refusal) and not fate.counts(self._clock()))
        ]
        self._wanted.forget([*gone, *over])
        for key in gone:
            telemetry.COMPOSITIONS.labels(result="recalled").inc()
            _log.warning(
                "worker.composition.recalled", composite=written[key].name, members=key.decode()[:500]
            )

    def _recalled(self, written: Mapping[bytes, Written]) -> list[bytes]:
        by_tenant: dict[str, dict[bytes, Written]] = {}
        for key, fate in written.items():
            by_tenant.setdefault(tenant_of(key.decode(errors="replace")), {})[key] = fate
        gone = []
        for tenant, fates in by_tenant.items():
            active = self._active(tenant, {member for fate in fates.values() for member in fate.members})
            gone += [key for key, fate in fates.items() if not _content(fate.members) <= active]
        return gone

    def _active(self, tenant: str, members: Collection[Member]) -> set[tuple[str, int, str]]:
        """Returns what is active of some adapters' versions."""
        columns = _VERSIONS.c
        statement = select(columns.adapter_id, columns.version, columns.digest).where(
            columns.tenant == tenant,
            columns.adapter_id.in_({member.adapter_id for member in members}),
            columns.state == "ACTIVE",
        )
        with translated_errors(), self._engine.connect() as connection:
            return {(row[0], row[1], row[2]) for row in connection.execute(statement)}


def readable(fate: bytes) -> Written | Refusal | None:
    """Returns what is said of a composition; None where nobody can read it."""
    with suppress(InvalidArgument):
        return read_fate(fate)
    return None


def _content(members: Collection[Member]) -> set[tuple[str, int, str]]:
    return {(member.adapter_id, member.version, member.digest) for member in members}
