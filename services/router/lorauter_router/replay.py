"""Decides recorded queries anew, on a thread beside the routes, under today's or other constants."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorauter.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LorauterError
from lorauter.routing.compiled import CompiledPool, compile_pool
from lorauter.routing.deciding import check_options, decide
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.replaying import under, unpack_terms, unpack_vector
from lorauter.routing.strategies.strategy import Query
from lorauter_router.domain import ServedSnapshot
from lorauter_router.ports import SnapshotSource
from lorauter_router.visibility import SeenPool

MAX_REPLAY = 256
"""Most queries of one call."""

KEPT_POOLS = 4
"""Pools under other constants that are kept compiled; each is as large as its own."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A query as lorauter.routing.replaying packs it, and how it was to be routed."""

    vector: bytes
    terms: bytes
    options: RouteOptions


@dataclass(frozen=True, slots=True)
class Replayed:
    """Decisions in the order of the queries, and what they were made on."""

    tenant: str
    pool: str
    generation: str
    profile_digest: str
    stale: bool
    decisions: Sequence[Decision]


class Replayer:
    """Replays calls one after the other. Belongs to one event loop; the work is done on threads."""

    def __init__(self, source: SnapshotSource) -> None:
        self._source = source
        self._turn = asyncio.Semaphore(1)
        self._compiled: OrderedDict[tuple[str, str, str], CompiledPool] = OrderedDict()

    async def replay(
        self,
        tenant: str,
        pool: str,
        queries: Sequence[Recorded],
        constants: Mapping[str, float],
        encoder_digest: str,
        timeout_seconds: float | None,
    ) -> Replayed:
        """Decides 1 to 256 queries of a caller of ``tenant`` on one generation.

        Empty ``constants`` are those that are served; an empty ``encoder_digest`` is not checked. Raises
        InvalidArgument (REPLAY_EMPTY, REPLAY_TOO_LARGE, POOL_REQUIRED, INVALID_FEATURES, INVALID_VECTORS,
        INVALID_CONSTANTS and those of check_options), NotFound (UNKNOWN_POOL), FailedPrecondition
        (ENCODER_CHANGED, TENANT_NOT_SERVED), Unavailable (NO_SNAPSHOT), DeadlineExceeded. Metadata ``query``
        is the number of the one at fault, from 0.
        """
        _check_size(len(queries))
        seen = self._source.current().view(tenant).pool(pool)
        _check_encoder(seen.served, encoder_digest)
        try:
            async with asyncio.timeout(timeout_seconds), self._turn:
                return await asyncio.to_thread(self._replayed, seen, queries, constants)
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED", "the deadline passed before all was replayed: send fewer queries a call"
            ) from None

    def _replayed(
        self, seen: SeenPool, queries: Sequence[Recorded], constants: Mapping[str, float]
    ) -> Replayed:
        compiled = self._under(seen, constants) if constants else seen.compiled
        decisions: list[Decision] = []
        for number, query in enumerate(queries):
            try:
                check_options(query.options)
                known = Query(unpack_vector(query.vector), terms=unpack_terms(query.terms))
                decisions.append(decide(compiled, known, query.options))
            except LorauterError as error:
                error.metadata["query"] = str(number)
                raise
        return Replayed(
            tenant=seen.tenant,
            pool=compiled.pool_id,
            generation=seen.served.generation,
            profile_digest=compiled.profile.digest,
            stale=seen.served.stale,
            decisions=decisions,
        )

    def _under(self, seen: SeenPool, constants: Mapping[str, float]) -> CompiledPool:
        pool = under(seen.pool, constants)
        key = (seen.served.snapshot.digest, pool.pool_id, pool.profile.digest)
        found = self._compiled.pop(key, None)
        if found is None:
            found = compile_pool(pool)
        self._compiled[key] = found
        while len(self._compiled) > KEPT_POOLS:
            self._compiled.popitem(last=False)
        return found


def _check_size(count: int) -> None:
    if not count:
        raise InvalidArgument("REPLAY_EMPTY", f"queries is empty: send 1 to {MAX_REPLAY}", field="queries")
    if count > MAX_REPLAY:
        raise InvalidArgument(
            "REPLAY_TOO_LARGE", f"queries has {count}: send at most {MAX_REPLAY}", field="queries"
        )


def _check_encoder(served: ServedSnapshot, digest: str) -> None:
    current = served.snapshot.encoder_digest
    if digest and digest != current:
        raise FailedPrecondition(
            "ENCODER_CHANGED",
            f"the queries' vectors are of encoder {digest[:19]}, what is served is of {current[:19]}: "
            "leave such queries out",
            current=current,
        )
