"""What a router serves at one moment, and what callers of a tenant see of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lorauter.access import PUBLIC_TENANT
from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, NotFound, Unavailable
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.model import Pool
from lorauter_router.domain import ServedSnapshot

NOTHING_PUBLISHED = "nothing is published in the index yet"


@dataclass(frozen=True, slots=True, eq=False)
class SeenPool:
    """A pool that callers see, and the snapshot that it is of."""

    served: ServedSnapshot
    pool: Pool

    @property
    def tenant(self) -> str:
        """Whose pool it is."""
        return self.served.tenant

    @property
    def compiled(self) -> CompiledPool:
        """The pool as it is decided on."""
        return self.served.pools[self.pool.pool_id]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The pools that callers of a tenant see: its own before public ones, which its own hide by their names.

    ``own`` is None where the tenant has nothing published, ``public`` where nothing is public. ``lacking``
    says why public pools that there are cannot be served.
    """

    own: ServedSnapshot | None
    public: ServedSnapshot | None
    lacking: str = ""

    def pool(self, name: str) -> SeenPool:
        """Returns a pool; an empty name means the tenant's only one, or, if it has none, the only public one.

        Raises NotFound (UNKNOWN_POOL), for an empty name InvalidArgument (POOL_REQUIRED) where there are
        several pools, Unavailable (NO_SNAPSHOT) where it may be a public pool that cannot be served.
        """
        for served in self._snapshots():
            if name and name in served.snapshot.pools:
                return SeenPool(served, served.snapshot.pools[name])
        populated = next((served for served in self._snapshots() if served.snapshot.pools), None)
        if name or populated is None:
            raise self._unknown(name)
        if len(populated.snapshot.pools) > 1:
            known = self._known()
            raise InvalidArgument(
                "POOL_REQUIRED", f"name a pool, for there are several: {known}", field="pool", known=known
            )
        return SeenPool(populated, next(iter(populated.snapshot.pools.values())))

    def pools(self) -> list[SeenPool]:
        """Returns every pool that is seen, by tenant and name, the tenant's own first."""
        found: dict[str, SeenPool] = {}
        for served in self._snapshots():
            for name, pool in sorted(served.snapshot.pools.items()):
                found.setdefault(name, SeenPool(served, pool))
        return list(found.values())

    def _snapshots(self) -> Iterator[ServedSnapshot]:
        return (served for served in (self.own, self.public) if served is not None)

    def _known(self) -> str:
        return ", ".join(sorted(seen.pool.pool_id for seen in self.pools())) or "none"

    def _unknown(self, name: str) -> LorauterError:
        if self.lacking:
            return no_snapshot(self.lacking)
        known = self._known()
        said = f"pool {name[:80]!r} does not exist" if name else "there is no pool yet"
        return NotFound("UNKNOWN_POOL", f"{said}: the pools are {known}", pool=name[:80], known=known)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshots:
    """What a router serves at one moment. Immutable, so that a call sees one generation of each tenant.

    ``served`` is by tenant. ``lacking`` says by tenant why what it has published is not served, and
    ``problem`` why nothing is known about those that are in neither. ``followed`` are the only tenants that
    the router serves, beside what is public; empty: all.
    """

    served: Mapping[str, ServedSnapshot] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    problem: str = NOTHING_PUBLISHED
    followed: frozenset[str] = frozenset()

    def view(self, tenant: str) -> View:
        """Returns what callers of ``tenant`` see.

        Raises FailedPrecondition (TENANT_NOT_SERVED); Unavailable (NO_SNAPSHOT) where there is nothing, and
        where what is the tenant's own cannot be served, for it may hide what is public.
        """
        self.check(tenant)
        own = self.served.get(tenant)
        public = None if tenant == PUBLIC_TENANT else self.served.get(PUBLIC_TENANT)
        if own is None and (public is None or tenant in self.lacking):
            raise no_snapshot(self.lacking.get(tenant, self.problem))
        return View(own, public, "" if public is not None else self.lacking.get(PUBLIC_TENANT, ""))

    def of(self, tenant: str) -> ServedSnapshot:
        """Returns a tenant's snapshot; raises Unavailable (NO_SNAPSHOT)."""
        found = self.served.get(tenant)
        if found is None:
            raise no_snapshot(self.lacking.get(tenant, self.problem))
        return found

    def pools(self) -> list[SeenPool]:
        """Returns every pool of every tenant, by tenant and name."""
        return [
            SeenPool(served, pool)
            for _, served in sorted(self.served.items())
            for _, pool in sorted(served.snapshot.pools.items())
        ]

    def check(self, tenant: str) -> None:
        """Returns if callers of ``tenant`` are served here; raises FailedPrecondition (TENANT_NOT_SERVED)."""
        if self.followed and tenant not in self.followed:
            raise FailedPrecondition(
                "TENANT_NOT_SERVED",
                "this router serves other tenants: ask one whose LORAUTER_TENANTS names the caller's",
            )


def no_snapshot(problem: str) -> Unavailable:
    """Returns the error where there is nothing to route on."""
    return Unavailable("NO_SNAPSHOT", f"there is no snapshot to route on: {problem}")
