"""Writes out the compositions that gateways want, for servers that load one adapter a request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sqlalchemy import Engine

from lorauter.compositions_wanted import (
    MOST_WRITTEN,
    WRITTEN,
    Refusal,
    Wanted,
    Written,
    dump_fate,
    key_of,
    tenant_of,
)
from lorauter.errors import Exhausted, InvalidArgument, LorauterError
from lorauter.lora import servers
from lorauter.lora.composites import CompositeStore
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.ports import WantedCompositions
from lorauter_worker.service import compositions
from lorauter_worker.service.recalls import readable

_log = get_logger(__name__)

REFUSED_SECONDS = 300.0
"""How long a refusal counts: what was wrong may be put right."""

MOST_AT_ONCE = 16
"""Compositions that are written before somebody may say stop."""

_TRY_AGAIN = frozenset({"DATABASE_UNAVAILABLE", "REDIS_UNAVAILABLE"})
"""What says nothing about the composition."""


class Composer:
    """Writes what is wanted into the adapter store. Any number of them share one stream."""

    def __init__(
        self,
        engine: Engine,
        store: CompositeStore,
        wanted: WantedCompositions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._store = store
        self._wanted = wanted
        self._clock = clock

    def once(self) -> None:
        """Writes at most MOST_AT_ONCE of what is wanted; what is refused is said with its reason.

        Raises Unavailable (DATABASE_UNAVAILABLE, REDIS_UNAVAILABLE); what was taken is done when a gateway
        asks for it again.
        """
        for _ in range(MOST_AT_ONCE):
            entry = self._wanted.take()
            if entry is None:
                return
            identity, fields = entry
            try:
                wanted = Wanted.read(fields)
            except InvalidArgument as error:
                telemetry.COMPOSITIONS.labels(result="dropped").inc()
                _log.warning("worker.composing.dropped", entry=identity, problem=error.message)
                continue
            self._serve(wanted)

    def _serve(self, wanted: Wanted) -> None:
        key = key_of(wanted)
        fates = {key.decode(errors="replace"): readable(fate) for key, fate in self._wanted.fates().items()}
        known = fates.get(key)
        if isinstance(known, Written) or (known is not None and known.counts(self._clock())):
            return
        if has_its_share(
            map(tenant_of, fates), wanted.tenant, 2 * MOST_WRITTEN
        ):  # mostly refusals, which end
            self._report(wanted, "dropped", problem="too much is refused already")
            return
        written = [tenant_of(name) for name, fate in fates.items() if isinstance(fate, Written)]
        fate = self._fate(wanted, written)
        self._wanted.put(key, dump_fate(fate))
        if isinstance(fate, Written):
            self._report(wanted, "written", composite=fate.name)
        else:
            self._report(wanted, "refused", reason=fate.reason, problem=fate.message)

    def _report(self, wanted: Wanted, result: str, **said: str) -> None:
        telemetry.COMPOSITIONS.labels(result=result).inc()
        _log.info("worker.composing.done", result=result, tenant=wanted.tenant, pool=wanted.pool, **said)

    def _fate(self, wanted: Wanted, written: Sequence[str]) -> Written | Refusal:
        """``written`` are the tenants of all that is written."""
        try:
            if has_its_share(written, wanted.tenant, MOST_WRITTEN):
                raise Exhausted(
                    "TOO_MANY_COMPOSITIONS",
                    f"{written.count(wanted.tenant)} compositions are written already: remove tasks, or from "
                    f"the hash {WRITTEN} in Redis what is no longer used",
                )
            return self._composed(wanted)
        except LorauterError as error:
            if error.reason in _TRY_AGAIN:
                raise
            return self._refusal(error.reason, error.message)
        except (MemoryError, OSError, ValueError) as error:
            _log.error("worker.composing.failed", exc_info=error)
            return self._refusal(
                "COMPOSITION_FAILED",
                f"it could not be written ({type(error).__name__}): see the worker's log",
            )

    def _composed(self, wanted: Wanted) -> Written:
        """Raises as Compositions.ensure() does."""
        at = compositions.Compositions(self._engine, self._store, wanted.tenant)
        members = [
            compositions.Member(each.adapter_id, each.version, each.weight, each.digest)
            for each in wanted.members
        ]
        composite = at.ensure(wanted.pool, members, _server(wanted))
        # Writing took a while: what was recalled meanwhile is not to be handed out.
        at.check(wanted.pool, members)
        return Written(composite.name, composite.rank, wanted.members)

    def _refusal(self, reason: str, message: str) -> Refusal:
        return Refusal(reason, message[:1000], self._clock() + REFUSED_SECONDS)


def has_its_share(owners: Iterable[str], tenant: str, most: int) -> bool:
    """Returns whether ``most`` are there and a tenant has its share of them, as large as everybody's.

    So what one tenant asks for costs no other its own: the sum stays below ``most`` times the harmonic number
    of the tenants.
    """
    counts = Counter(owners)
    tenants = counts.keys() | {tenant}
    return counts.total() >= most and counts[tenant] * len(tenants) >= most


def _server(wanted: Wanted) -> servers.Server:
    """Returns whom a composite is for; raises InvalidArgument (INVALID_FIELD)."""
    if wanted.backend_kind == "vllm":
        return servers.vllm(wanted.max_rank)
    server = servers.tgi(wanted.shards)
    if wanted.max_rank >= server.max_rank:
        return server
    ranks = tuple(rank for rank in server.ranks if rank <= wanted.max_rank)
    if not ranks:
        raise InvalidArgument(
            "INVALID_FIELD",
            f"max_rank is {wanted.max_rank}; TGI on {wanted.shards} shards takes {server.ranks[0]} or more",
            field="max_rank",
        )
    return replace(server, ranks=ranks, max_rank=ranks[-1])
