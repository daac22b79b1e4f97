"""Adapters, their versions, aliases and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlmodel import Session, col, select

from lorauter.errors import FailedPrecondition, InvalidArgument, NotFound
from lorauter.store import Write, tables
from lorauter_registry.domain.adapter_requests import (
    DisableAdapter,
    ListAdapters,
    ListAdapterVersions,
    RetireAdapter,
    SetAdapterAlias,
    UpdateAdapter,
)
from lorauter_registry.domain.adapters import advance, can_become, state_at
from lorauter_registry.domain.answers import AdapterList, AdapterVersionList
from lorauter_registry.domain.fields import Change
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Adapter, AdapterState
from lorauter_registry.service.base import Part, among, check_etag, touch
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import adapter_of, version_of

MAX_ALIASES = 64
"""Most aliases of an adapter."""

_SERVABLE = frozenset({AdapterState.ACTIVE, AdapterState.DRAINING})


class Adapters(Part):
    """Adapters, their versions, aliases and states."""

    def get_adapter(self, request: GetById) -> Adapter:
        """Returns an adapter; raises NotFound (ADAPTER_NOT_FOUND)."""
        with self.reading() as session:
            row = self.existing(session, tables.Adapter, "adapter", request.id)
            return self.shown(session, [row], datetime.now(UTC))[0]

    def list_adapters(self, request: ListAdapters) -> AdapterList:
        """Lists adapters by id; raises NotFound (POOL_NOT_FOUND)."""
        adapter, version = tables.Adapter, tables.AdapterVersion
        statement = select(adapter).where(adapter.tenant == self.tenant)
        now = datetime.now(UTC)
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(adapter.pool == request.pool)
            if request.state is not None:
                statement = statement.join(
                    version,
                    (col(version.tenant) == adapter.tenant)
                    & (col(version.adapter_id) == adapter.id)
                    & (col(version.version) == adapter.latest_version),
                ).where(version.state == request.state)
            adapters, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(adapter.id)],
                lambda rows: self.shown(session, rows, now),
            )
        return AdapterList(adapters=adapters, next_page_token=token)

    def list_adapter_versions(self, request: ListAdapterVersions) -> AdapterVersionList:
        """Lists an adapter's versions, newest first; raises NotFound (ADAPTER_NOT_FOUND)."""
        version = tables.AdapterVersion
        statement = select(version).where(version.tenant == self.tenant, version.adapter_id == request.id)
        now = datetime.now(UTC)
        with self.reading() as session:
            self.existing(session, tables.Adapter, "adapter", request.id)
            versions, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(version.version)],
                lambda rows: [version_of(row, now) for row in rows],
                newest_first=True,
            )
        return AdapterVersionList(versions=versions, next_page_token=token)

    def update_adapter(self, request: UpdateAdapter) -> Adapter:
        """Changes an adapter's description or tags; raises NotFound or Conflict (ETAG_MISMATCH)."""

        def change(_: Write, row: tables.Adapter) -> None:
            if request.description is not None:
                row.description = request.description
            if request.replace_tags:
                row.tags = list(request.tags)

        return self._change(request.id, request, change)

    def set_adapter_alias(self, request: SetAdapterAlias) -> Adapter:
        """Points an alias to a version that may be served, or removes it.

        Raises NotFound (ADAPTER_NOT_FOUND, ADAPTER_VERSION_NOT_FOUND, ALIAS_NOT_FOUND),
        FailedPrecondition (VERSION_NOT_SERVABLE, TOO_MANY_ALIASES) or Conflict (ETAG_MISMATCH).
        """

        def change(tx: Write, row: tables.Adapter) -> None:
            aliases = dict(row.aliases)
            if request.version == 0:
                if aliases.pop(request.alias, None) is None:
                    raise NotFound("ALIAS_NOT_FOUND", f"adapter {row.id!r} has no alias {request.alias!r}")
            else:
                state = self._state(self._version(tx, row, request.version), tx)
                if state not in _SERVABLE:
                    raise FailedPrecondition(
                        "VERSION_NOT_SERVABLE",
                        f"version {request.version} of adapter {row.id!r} is {state}: choose an active one",
                    )
                aliases[request.alias] = request.version
            if len(aliases) > MAX_ALIASES:
                raise FailedPrecondition(
                    "TOO_MANY_ALIASES", f"adapter {row.id!r} has {MAX_ALIASES} aliases: remove one first"
                )
            row.aliases = aliases

        return self._change(request.id, request, change)

    def retire_adapter(self, request: RetireAdapter) -> Adapter:
        """Takes a version, or all that may still be served, out of new decisions.

        With ``pins_until`` they drain, else they are retired at once. Raises NotFound,
        InvalidArgument (INVALID_PINS_UNTIL, INVALID_SUCCESSOR), FailedPrecondition (INVALID_TRANSITION,
        NOTHING_TO_RETIRE) or Conflict (ETAG_MISMATCH).
        """
        target = AdapterState.DRAINING if request.pins_until else AdapterState.RETIRED

        def change(tx: Write, row: tables.Adapter) -> None:
            self._check_retirement(tx, row, request)
            versions = self._versions(tx, row, request.version)
            if request.version == 0:
                versions = [version for version in versions if self._state(version, tx) in _SERVABLE]
                if not versions:
                    raise FailedPrecondition(
                        "NOTHING_TO_RETIRE", f"no version of adapter {row.id!r} is active or draining"
                    )
            for version in versions:
                version.state = advance(self._state(version, tx), target)
                version.pins_until = request.pins_until
                version.successor = request.successor

        return self._change(request.id, request, change)

    def disable_adapter(self, request: DisableAdapter) -> Adapter:
        """Recalls a version, or all of them, for a reason; raises NotFound or Conflict (ETAG_MISMATCH)."""

        def change(tx: Write, row: tables.Adapter) -> None:
            for version in self._versions(tx, row, request.version):
                if can_become(AdapterState(version.state), AdapterState.QUARANTINED):
                    version.state = AdapterState.QUARANTINED
                    version.state_reason = request.reason
                    version.pins_until = None

        return self._change(request.id, request, change)

    def shown(self, session: Session, rows: Sequence[tables.Adapter], now: datetime) -> list[Adapter]:
        """Returns the adapters of rows as of ``now``."""
        version = tables.AdapterVersion
        of_rows = (version.tenant == self.tenant, among(version.adapter_id, [row.id for row in rows]))
        states: dict[str, list[tuple[int, AdapterState]]] = {row.id: [] for row in rows}
        light = select(version.adapter_id, version.version, version.state, version.pins_until)
        for adapter_id, number, state, pins_until in session.exec(light.where(*of_rows)):
            states[adapter_id].append((number, state_at(AdapterState(state), pins_until, now)))
        newest = select(version).join(
            tables.Adapter,
            (col(tables.Adapter.tenant) == version.tenant)
            & (col(tables.Adapter.id) == version.adapter_id)
            & (col(tables.Adapter.latest_version) == version.version),
        )
        latest = {row.adapter_id: row for row in session.exec(newest.where(*of_rows))}
        return [adapter_of(row, latest[row.id], states[row.id], now) for row in rows]

    def _change(
        self, adapter_id: str, request: Change, change: Callable[[Write, tables.Adapter], None]
    ) -> Adapter:
        def guarded(tx: Write) -> Adapter:
            row = self.existing(tx.session, tables.Adapter, "adapter", adapter_id, lock=True)
            check_etag(row, request.etag)
            change(tx, row)
            touch(row, tx)
            tx.owe("index", row.pool)
            return self.shown(tx.session, [row], tx.now)[0]

        return self.changing(request, Adapter, guarded)

    def _versions(self, tx: Write, row: tables.Adapter, number: int) -> Sequence[tables.AdapterVersion]:
        if number:
            return [self._version(tx, row, number)]
        version = tables.AdapterVersion
        statement = select(version).where(version.tenant == self.tenant, version.adapter_id == row.id)
        return tx.session.exec(statement).all()

    def _version(self, tx: Write, row: tables.Adapter, number: int) -> tables.AdapterVersion:
        return self.existing(tx.session, tables.AdapterVersion, "adapter version", (row.id, number))

    def _state(self, version: tables.AdapterVersion, tx: Write) -> AdapterState:
        return state_at(AdapterState(version.state), version.pins_until, tx.now)

    def _check_retirement(self, tx: Write, row: tables.Adapter, request: RetireAdapter) -> None:
        latest = tx.now + self.context.max_pins
        if request.pins_until is not None and not tx.now < request.pins_until <= latest:
            raise InvalidArgument(
                "INVALID_PINS_UNTIL",
                f"pins_until must lie in the future and not after {latest.isoformat(timespec='seconds')}",
                field="pins_until",
            )
        if not request.successor:
            return
        successor = self.existing(tx.session, tables.Adapter, "adapter", request.successor)
        if successor.pool != row.pool or (successor.id == row.id and request.version == 0):
            raise InvalidArgument(
                "INVALID_SUCCESSOR",
                f"successor {successor.id!r} must be another adapter of pool {row.pool!r}",
                field="successor",
            )
