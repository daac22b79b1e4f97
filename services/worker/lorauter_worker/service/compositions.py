"""Writes compositions out as composites, from what the registry says of their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session

from lorauter.errors import FailedPrecondition, LorauterError, NotFound, UnprocessableRequest
from lorauter.lora.composites import Composite, CompositeStore
from lorauter.lora.precision import Precision
from lorauter.lora.recipe import Base, Recipe, make_recipe
from lorauter.lora.servers import Server
from lorauter.store import read, tables


@dataclass(frozen=True, slots=True)
class Member:
    """An adapter of a composition: a version, as the registry knows it, and any finite weight.

    ``digest``, where it is given, must be that of the version's content.
    """

    adapter_id: str
    version: int
    weight: float
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Compositions:
    """Composites of a tenant's pools, in the store that inference servers load adapters from."""

    engine: Engine
    store: CompositeStore
    tenant: str

    def ensure(
        self,
        pool_id: str,
        members: Sequence[Member],
        server: Server,
        precision: Precision = "bfloat16",
        truncate_to: int | None = None,
    ) -> Composite:
        """Returns the composite of active adapters of one pool for ``server``, written if it is not there.

        Nothing is written before all is known to be right, and no transaction is open while it is. Raises
        NotFound (POOL_NOT_FOUND, UNKNOWN_ADAPTER, UNKNOWN_ADAPTER_VERSION), UnprocessableRequest
        (ADAPTER_BASE_MISMATCH), FailedPrecondition (ADAPTER_ and the state, such as ADAPTER_QUARANTINED;
        ADAPTER_CONTENT_DIFFERS), with ``field`` in the metadata, and as make_recipe() and
        CompositeStore.ensure() do.
        """
        with read(self.engine) as session:
            recipe = self._recipe(session, pool_id, members, server, precision, truncate_to)
        return self.store.ensure(recipe)

    def check(self, pool_id: str, members: Sequence[Member]) -> None:
        """Returns if these may be composed now, else raises as ensure() does before it writes."""
        with read(self.engine) as session:
            self._weighted(session, self._pool(session, pool_id), members)

    def _recipe(
        self,
        session: Session,
        pool_id: str,
        members: Sequence[Member],
        server: Server,
        precision: Precision,
        truncate_to: int | None,
    ) -> Recipe:
        pool = self._pool(session, pool_id)
        weighted = self._weighted(session, pool, members)
        base = Base(
            pool.base_model,
            pool.weights_digest or f"revision:{pool.base_revision}",
            {name: (shape[0], shape[1]) for name, shape in pool.modules.items()},
        )
        return make_recipe(base, weighted, server, precision, truncate_to)

    def _pool(self, session: Session, pool_id: str) -> tables.Pool:
        pool = session.get(tables.Pool, (self.tenant, pool_id))
        if pool is None:
            raise NotFound("POOL_NOT_FOUND", f"pool {pool_id[:80]!r} does not exist", field="pool")
        return pool

    def _weighted(
        self, session: Session, pool: tables.Pool, members: Sequence[Member]
    ) -> list[tuple[str, float]]:
        return [
            (self._digest(session, pool, member, position), member.weight)
            for position, member in enumerate(members)
        ]

    def _digest(self, session: Session, pool: tables.Pool, member: Member, position: int) -> str:
        """Returns the content of a member; raises if it is not one to compose."""
        name, field = member.adapter_id[:80], f"adapters[{position}]"
        adapter = session.get(tables.Adapter, (self.tenant, member.adapter_id))
        if adapter is None:
            raise _refused(NotFound, "UNKNOWN_ADAPTER", f"adapter {name!r} is not registered", field)
        if adapter.pool != pool.id:
            raise _refused(
                UnprocessableRequest,
                "ADAPTER_BASE_MISMATCH",
                f"adapter {name!r} is of pool {adapter.pool!r}, not of {pool.id!r}: "
                "only adapters of one base model compose",
                field,
            )
        version = session.get(tables.AdapterVersion, (self.tenant, member.adapter_id, member.version))
        if version is None:
            message = f"adapter {name!r} has no version {member.version}"
            raise _refused(NotFound, "UNKNOWN_ADAPTER_VERSION", message, field)
        if version.state != "ACTIVE":
            message = f"version {version.version} of adapter {name!r} is {version.state}: compose active ones"
            raise _refused(FailedPrecondition, f"ADAPTER_{version.state}", message, field)
        if member.digest not in ("", version.digest):
            message = f"version {version.version} of adapter {name!r} is not {member.digest[:80]}"
            raise _refused(FailedPrecondition, "ADAPTER_CONTENT_DIFFERS", message, field)
        return version.digest


def _refused(kind: type[LorauterError], reason: str, message: str, field: str) -> LorauterError:
    return kind(reason, message, field=field)
