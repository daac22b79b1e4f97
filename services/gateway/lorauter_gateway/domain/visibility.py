"""Which pools callers of a tenant see: its own, and public ones that none of its own hides by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lorauter.access import PUBLIC_TENANT
from lorauter.errors import InvalidArgument, LorauterError, NotFound
from lorauter.router.v1.router_pb2 import PoolSnapshot


@dataclass(frozen=True, slots=True)
class View:
    """What a tenant sees: pools by name, and the one that no name stands for, None where there is none."""

    pools: Mapping[str, PoolSnapshot] = field(default_factory=dict)
    only: PoolSnapshot | None = None

    def find(self, name: str) -> PoolSnapshot | None:
        """Returns a pool; no name means the tenant's only one, or, if it has none, the only public one."""
        return self.pools.get(name) if name else self.only

    def lacking(self, name: str) -> LorauterError:
        """Returns the error where find() finds nothing; it tells of pools that are seen only."""
        names = ", ".join(self.pools)
        if name:
            return NotFound("UNKNOWN_POOL", f"there is no pool {name[:80]!r}: use one of {names or '(none)'}")
        if names:
            message = f"name a pool, for there are several: {names}"
            return InvalidArgument("POOL_REQUIRED", message, field="pool")
        return NotFound("UNKNOWN_POOL", "there is no pool yet: create one in the registry")


class Views:
    """The pools of a snapshot by who sees them."""

    def __init__(self, pools: Iterable[PoolSnapshot]) -> None:
        by_tenant: dict[str, list[PoolSnapshot]] = {}
        for pool in pools:
            by_tenant.setdefault(pool.tenant, []).append(pool)
        public = by_tenant.pop(PUBLIC_TENANT, [])
        self._stranger = _view(public)
        self._by_tenant = {tenant: _view(own, public) for tenant, own in by_tenant.items()}

    def of(self, tenant: str) -> View:
        """Returns what callers of ``tenant`` see."""
        return self._by_tenant.get(tenant, self._stranger)


def _view(own: list[PoolSnapshot], public: Iterable[PoolSnapshot] = ()) -> View:
    found = {pool.pool: pool for pool in own}
    for pool in public:
        found.setdefault(pool.pool, pool)
    return View(found, own[0] if len(own) == 1 else None)
