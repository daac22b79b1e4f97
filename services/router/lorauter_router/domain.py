"""One tenant's generation, compiled, and what can be asked of its pools: adapters, pages of adapters."""

from __future__ import annotations

import base64
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorauter.errors import FailedPrecondition, InvalidArgument, NotFound
from lorauter.identifiers import BASE, encode_generation
from lorauter.routing.compiled import CompiledPool, compile_pool
from lorauter.routing.model import Adapter, Pool, Snapshot

DEFAULT_PAGE = 100
LARGEST_PAGE = 1_000

Key = tuple[str, str, int]
"""Where an adapter version stands in a listing: pool, id, version."""


@dataclass(frozen=True, slots=True)
class Servable:
    """How many adapter versions of a pool may be served: ``always``, and until the Unix times ``ends``."""

    always: int
    ends: tuple[float, ...]

    @classmethod
    def of(cls, pool: Pool) -> Servable:
        """Counts a pool's adapter versions."""
        left = [each for each in pool.adapters if not each.refusal]
        ends = sorted(each.pins_until for each in left if not each.routable and each.pins_until is not None)
        return cls(len(left) - len(ends), tuple(ends))

    def count(self, now: float) -> int:
        """Returns how many it is at ``now``, in Unix seconds."""
        return self.always + len(self.ends) - bisect_right(self.ends, now)


@dataclass(frozen=True, slots=True, eq=False)
class ServedSnapshot:
    """A tenant's snapshot with its pools compiled. Immutable: whoever holds it sees exactly one generation.

    ``servable`` is by pool. ``generation`` is in its opaque form. ``stale``: newer ones may exist that cannot
    be read.
    """

    snapshot: Snapshot
    pools: Mapping[str, CompiledPool]
    servable: Mapping[str, Servable]
    generation: str
    stale: bool = False

    @classmethod
    def of(cls, snapshot: Snapshot) -> ServedSnapshot:
        """Compiles every pool of a snapshot."""
        pools = {name: compile_pool(pool) for name, pool in snapshot.pools.items()}
        servable = {name: Servable.of(pool) for name, pool in snapshot.pools.items()}
        return cls(snapshot, pools, servable, encode_generation(snapshot.generation, snapshot.tenant))

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.snapshot.tenant


def resolve(pool: Pool, reference: str, now: float) -> Adapter:
    """Returns the adapter version that ``id``, ``id@version`` or ``id@alias`` may be served by now.

    A bare id means its newest routable version, else its newest that may still be pinned. ``now`` is
    in Unix seconds. Raises InvalidArgument (ADAPTER_REQUIRED, RESERVED_ID);
    NotFound (UNKNOWN_ADAPTER, UNKNOWN_ADAPTER_VERSION); FailedPrecondition with the refusal's reason,
    such as ADAPTER_RETIRED or ADAPTER_DISABLED, and metadata ``successor`` where there is one.
    """
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
    return best


def servable_page(
    pools: Iterable[Pool], page_size: int, page_token: str, now: float
) -> tuple[list[tuple[Key, Adapter]], str]:
    """Returns a page of the adapter versions that may be served at ``now``, and the next page's token.

    They are by pool, id and version; the last page's token is empty. A token is a place in the order, so it
    stays valid when the generation changes. Raises InvalidArgument (INVALID_PAGE_SIZE, INVALID_PAGE_TOKEN).
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
    for key, adapter in _servable(pools, now):
        if after is not None and key <= after:
            continue
        if len(page) == size:
            return page, _encode_token(page[-1][0])
        page.append((key, adapter))
    return page, ""


def _servable(pools: Iterable[Pool], now: float) -> Iterator[tuple[Key, Adapter]]:
    for pool in sorted(pools, key=lambda pool: pool.pool_id):
        for adapter in sorted(pool.adapters, key=lambda a: (a.adapter_id, a.version)):
            if not _refusal(adapter, now):
                yield (pool.pool_id, adapter.adapter_id, adapter.version), adapter


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
