"""Checks keys with the registry, and remembers for a while what it said."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lorauter.access import Caller, Scope
from lorauter.client import NO_RETRY, AsyncClient
from lorauter.errors import Exhausted, LorauterError, Unauthenticated, Unavailable
from lorauter.registry.v1.registry_pb2 import Caller as CallerMessage
from lorauter.registry.v1.registry_pb2 import WhoAmIRequest
from lorauter.server.access import Gate, open_gate, presented_in
from lorauter.settings import RemoteAccessSettings
from lorauter.telemetry import get_logger

FRESH_SECONDS = 2.0
"""How long an answer of the registry is taken for today's."""

STALE_SECONDS = 4.0
"""Until when it is used while a newer one is fetched: a revoked key is refused after that."""

AWAY_SECONDS = 600.0
"""How long a known key is good while the registry is away."""

_MOST_KNOWN = 10_000
_MOST_ASKING = 64
_TIMEOUT_SECONDS = 5.0
_LOST_SECONDS = 2 * _TIMEOUT_SECONDS
_PATH = "/lorauter.registry.v1.RegistryService/WhoAmI"
_log = get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """What the registry said of a key; ``caller`` or ``refusal`` is there."""

    caller: Caller | None
    refusal: Unauthenticated | None
    at: float
    lost: float = float("-inf")
    """When the registry was last asked about it in vain."""

    def stands(self) -> bool:
        """Returns whether nobody waits for a newer answer: it is young, or none came when asked for."""
        is_lost = self._silence() < _LOST_SECONDS
        return self.age() < STALE_SECONDS or (is_lost and self.age() < AWAY_SECONDS)

    def is_to_renew(self) -> bool:
        """Returns whether a newer answer is to be asked for beside the calls that it lets in."""
        return self.caller is not None and min(self.age(), self._silence()) >= FRESH_SECONDS

    def age(self) -> float:
        """Returns the seconds since the registry said so."""
        return time.monotonic() - self.at

    def _silence(self) -> float:
        return time.monotonic() - self.lost

    def answer(self) -> Caller:
        if self.refusal is not None:
            raise Unauthenticated(self.refusal.reason, self.refusal.message, **self.refusal.metadata)
        assert self.caller is not None
        if self.caller.expires is not None and self.caller.expires <= time.time():
            raise Unauthenticated("KEY_EXPIRED", "the key has expired: ask for another one")
        return self.caller


class RemoteKeys:
    """A Gate that asks the registry. Belongs to one event loop.

    Keys that it does not know wait for a registry that is away, as while it starts, and are refused as
    KEYS_UNAVAILABLE if it does not come; those that it knows stay good for AWAY_SECONDS, and each waits once
    for one that is silent. Refused keys are remembered apart from good ones, and asked about within a bound
    that does not hold for good ones, so that forged keys in any number do not keep anybody out.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._transport = client.registry.transport
        self._good: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}

    async def admit(self, authorization: str) -> Caller:
        """See Gate."""
        presented = presented_in(authorization)
        known = self._good.get(presented.digest) or self._refused.get(presented.digest)
        if known is not None and known.stands():
            if known.is_to_renew():
                self._ask(presented.digest, authorization)
            return known.answer()
        try:
            return (await asyncio.shield(self._ask(presented.digest, authorization))).answer()
        except Unavailable:
            if known is None or known.age() >= AWAY_SECONDS:
                raise
            return known.answer()

    def _ask(self, digest: bytes, authorization: str) -> asyncio.Task[_Known]:
        """Returns the question about a key that is under way, or begins one."""
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= _MOST_ASKING and digest not in self._good:
                raise Exhausted("TOO_MANY_KEYS", "too many keys are being checked: retry in a moment")
            task = asyncio.create_task(self._look_up(digest, authorization))
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    def _asked(self, digest: bytes, done: asyncio.Task[_Known]) -> None:
        self._asking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # so that asyncio does not complain of it where nobody waits any more

    async def _look_up(self, digest: bytes, authorization: str) -> _Known:
        caller: Caller | None = None
        refusal: Unauthenticated | None = None
        known = self._good.get(digest) or self._refused.get(digest)
        try:
            message = await self._transport.unary(
                _PATH,
                WhoAmIRequest(),
                CallerMessage,
                idempotent=True,
                timeout_seconds=_TIMEOUT_SECONDS,
                metadata=(("authorization", authorization),),
                wait_for_ready=known is None,
            )
            caller = to_caller(message)
        except Unauthenticated as error:
            refusal = error
        except LorauterError as error:
            if known is not None:
                known.lost = time.monotonic()
            _log.warning("access.keys.unavailable", reason=error.reason, error=error.message)
            raise Unavailable(
                "KEYS_UNAVAILABLE", "the registry cannot be asked about the key: retry"
            ) from None
        return self._remember(digest, _Known(caller, refusal, time.monotonic()))

    def _remember(self, digest: bytes, known: _Known) -> _Known:
        into, out_of = (self._refused, self._good) if known.refusal else (self._good, self._refused)
        out_of.pop(digest, None)
        into[digest] = known
        into.move_to_end(digest)
        while len(into) > _MOST_KNOWN:
            into.popitem(last=False)
        return known


def to_caller(message: CallerMessage) -> Caller:
    """Returns the caller that the registry describes."""
    return Caller(
        tenant=message.tenant,
        scopes=frozenset(Scope(scope) for scope in message.scopes),
        key_id=message.key_id,
        any_tenant=message.any_tenant,
        expires=message.expire_time.ToNanoseconds() / 1e9 if message.HasField("expire_time") else None,
        requests_per_minute=message.requests_per_minute,
        tokens_per_minute=message.tokens_per_minute,
    )


@asynccontextmanager
async def gate_of(settings: RemoteAccessSettings) -> AsyncIterator[Gate]:
    """Returns the gate that a service is to have by its settings; closes its connection at the end."""
    if settings.access == "open":
        yield open_gate(settings)
        return
    # no key of its own, and one try: callers wait
    async with AsyncClient(
        registry=settings.registry_address, api_key="", retry=NO_RETRY, tls=settings.client_tls()
    ) as client:
        yield RemoteKeys(client)
