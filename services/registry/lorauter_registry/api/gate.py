"""Checks keys in the registry's own database, beside the calls that use them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from lorauter.access import Caller
from lorauter.errors import Exhausted
from lorauter.server.access import presented_in
from lorauter_registry.service.admission import Admission

THREADS = 4
MOST_WAITING = 256
"""Keys that may be looked up or wait for it; more are refused at once."""


class StoredKeys:
    """A Gate on threads of its own: slow calls hold up nobody's key, and forged keys no call."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="keys")
        self._running = 0

    async def admit(self, authorization: str) -> Caller:
        """See Gate; with PostgreSQL away raises Unavailable (DATABASE_UNAVAILABLE)."""
        presented = presented_in(authorization)
        if self._running >= MOST_WAITING:
            raise Exhausted("TOO_MANY_KEYS", "too many keys are being checked: retry in a moment")
        self._running += 1
        try:
            look_up = self._admission.caller_of
            return await asyncio.get_running_loop().run_in_executor(self._executor, look_up, presented)
        finally:
            self._running -= 1

    def close(self) -> None:
        """Lets running look-ups finish and drops waiting ones."""
        self._executor.shutdown(cancel_futures=True)
