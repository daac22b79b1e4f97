"""One generation, compiled, and what can be asked of it: pools, adapters, pages of adapters."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorauter.errors import FailedPrecondition, InvalidArgument, NotFound
from lorauter.identifiers import BASE, encode_generation
from lorauter.routing.compiled import CompiledPool, compile_pool
from lorauter.routing.model import Adapter, Pool, Snapshot

DEFAULT_PAGE = 100
LARGEST_PAGE = 1_000

Key = tuple[str, str, int]
"""Where an adapter version stands in a listing: pool, id, version."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedSnapshot:
    """A snapshot with its pools compiled. Immutable: whoever holds it sees exactly one generation."""

    snapshot: Snapshot
    pools: Mapping[str, CompiledPool]

    @classmethod
    def of(cls, snapshot: Snapshot) -> ServedSnapshot:
        """Compiles every pool of a snapshot."""
        return cls(snapshot, {name: compile_pool(pool) for name, pool in snapshot.pools.items()})

    @property
    def generation(self) -> str:
        """The generation in its opaque form."""
        return encode_generation(self.snapshot.generation, self.snapshot.tenant)

    def pool(self, name: str) -> Pool:
        """Returns a pool; an empty name means the only one.

        Raises NotFound (UNKNOWN_POOL), and for an empty name InvalidArgument (POOL_REQUIRED) where there
        are several pools.
        """
        pools = self.snapshot.pools
        known = ", ".join(sorted(pools)) or "none"
        if name in pools:
            return pools[name]
        if name or not pools:
            said = f"pool {name[:80]!r} does not exist" if name else "there is no pool yet"
            raise NotFound("UNKNOWN_POOL", f"{said}: the pools are {known}", pool=name[:80], known=known)
        if len(pools) > 1:
            raise InvalidArgument(
                "POOL_REQUIRED", f"name a pool, for there are several: {known}", field="pool", known=known
            )
        return next(iter(pools.values()))

    def compiled(self, name: str) -> CompiledPool:
        """Returns the compiled form of ``pool(name)``; raises as it does."""
        return self.pools[self.pool(name).pool_id]

    def resolve(self, pool_name: str, reference: str, now: float) -> tuple[Pool, Adapter]:
        """Returns the adapter version that ``id``, ``id@version`` or ``id@alias`` may be served by now.

        A bare id means its newest routable version, else its newest that may still be pinned. ``now`` is
        in Unix seconds. Raises as ``pool`` does; InvalidArgument (ADAPTER_REQUIRED, RESERVED_ID);
        NotFound (UNKNOWN_ADAPTER, UNKNOWN_ADAPTER_VERSION); FailedPrecondition with the refusal's reason,
        such as ADAPTER_RETIRED or ADAPTER_DISABLED, and metadata ``successor`` where there is one.
        """
        pool = self.pool(pool_name)
        name, mark, selector = reference.partition("@")
        if not name or (mark and not selector):
            raise InvalidArgument(
                "ADAPTER_REQUIRED",
                f"adapter {reference[:80]!r} names none: use id, id@version or id@alias",
                field="adapter",
            )
        if name == BASE:
            raise InvalidArgument(
                "RESERVED_ID", "the base is not an adapter: it needs no resolving", field="adapter"
            )
        versions = sorted((a for a in pool.adapters if a.adapter_id == name), key=lambda a: -a.version)
        if not versions:
            raise NotFound(
                "UNKNOWN_ADAPTER",
                f"adapter {name[:80]!r} does not exist in pool {pool.pool_id!r}: list the adapters that do",
                adapter=name[:80],
            )
        chosen = [a for a in versions if not selector or str(a.version) == selector or selector in a.aliases]
        if not chosen:
            raise NotFound(
                "UNKNOWN_ADAPTER_VERSION",
                f"adapter {name!r} has no version or alias {selector[:80]!r}: "
                f"it has {', '.join(str(a.version) for a in versions)}",
                adapter=name,
            )
        best = min(chosen, key=lambda a: (_refusal(a, now) != "", not a.routable, -a.version))
        _check_servable(best, now)
        return pool, best

    def servable(self, pool_name: str, now: float) -> Iterator[tuple[Key, Adapter]]:
        """Yields every adapter version that may be served at ``now``, by pool, id and version.

        An empty name means all pools; raises NotFound (UNKNOWN_POOL).
        """
        for name in [pool_name] if pool_name else sorted(self.snapshot.pools):
            pool = self.pool(name)
            for adapter in sorted(pool.adapters, key=lambda a: (a.adapter_id, a.version)):
                if not _refusal(adapter, now):
                    yield (pool.pool_id, adapter.adapter_id, adapter.version), adapter

    def servable_page(
        self, pool_name: str, page_size: int, page_token: str, now: float
    ) -> tuple[list[tuple[Key, Adapter]], str]:
        """Returns a page of ``servable`` and the token of the next one, empty on the last.

        A token is a place in the order, so it stays valid when the generation changes. Raises as
        ``servable``, and InvalidArgument (INVALID_PAGE_SIZE, INVALID_PAGE_TOKEN).
        """
        if page_size < 0:
            raise InvalidArgument(
                "INVALID_PAGE_SIZE",
                f"page_size is {page_size}: give 1 to {LARGEST_PAGE}, or 0",
                field="page_size",
            )
        size = min(page_size or DEFAULT_PAGE, LARGEST_PAGE)
        after = _decode_token(page_token) if page_token else None
        page: list[tuple[Key, Adapter]] = []
        for key, adapter in self.servable(pool_name, now):
            if after is not None and key <= after:
                continue
            if len(page) == size:
                return page, _encode_token(page[-1][0])
            page.append((key, adapter))
        return page, ""


def _refusal(adapter: Adapter, now: float) -> str:
    if adapter.refusal:
        prefix = "" if adapter.refusal.startswith("ADAPTER_") else "ADAPTER_"
        return prefix + adapter.refusal
    expired = not adapter.routable and adapter.pins_until is not None and adapter.pins_until <= now
    return "ADAPTER_RETIRED" if expired else ""


def _check_servable(adapter: Adapter, now: float) -> None:
    reason = _refusal(adapter, now)
    if not reason:
        return
    state = reason.removeprefix("ADAPTER_").replace("_", " ").lower()
    metadata = {"adapter": adapter.adapter_id, "version": str(adapter.version)}
    advice = "let the router choose, or pin another version"
    if adapter.successor:
        metadata["successor"] = adapter.successor
        advice = f"use its successor {adapter.successor!r}"
    raise FailedPrecondition(
        reason, f"adapter {adapter.adapter_id!r} version {adapter.version} is {state}: {advice}", **metadata
    )


def _encode_token(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _decode_token(token: str) -> Key:
    try:
        pool, adapter, version = json.loads(base64.urlsafe_b64decode(token.encode()))
        return str(pool), str(adapter), int(version)
    except (ValueError, TypeError):
        raise InvalidArgument(
            "INVALID_PAGE_TOKEN",
            "page_token is not one that this call returned: begin without it",
            field="page_token",
        ) from None
