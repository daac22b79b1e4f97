"""Runs the service's blocking calls on a bounded number of threads, for both transports."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from prometheus_client import Histogram

from lorauter.access import caller, is_public, scope_of
from lorauter.errors import Exhausted, LorauterError, PermissionDenied
from lorauter.registry.v1 import registry_pb2
from lorauter.server.access import denied
from lorauter.store import ping
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Operation
from lorauter_registry.service import Registry

Q = TypeVarTuple("Q")
A = TypeVar("A")

SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"]
"""Its methods' options say what callers' keys must allow, over REST too."""

WAITING_PER_THREAD = 16
"""Calls that may wait for each thread; more are refused at once."""

_seconds = Histogram(
    "lorauter_registry_call_seconds", "Duration of calls by name and outcome", ["call", "outcome"]
)


class Calls:
    """The service, awaited."""

    def __init__(self, registry: Registry, threads: int, watch_seconds: float) -> None:
        self.registry = registry
        self._watch_seconds = watch_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="registry")
        self._most = threads * (1 + WAITING_PER_THREAD)
        self._running = 0
        self._alone = asyncio.Semaphore(1)

    async def run(self, call: Callable[[*Q], A], *arguments: *Q, rpc: str = "") -> A:
        """Returns what ``call(*arguments)`` returns, on a thread, if its caller's key allows the RPC.

        That is the one of the call's name, unless ``rpc`` says whose part it is. Raises PermissionDenied
        (SCOPE_MISSING, TENANT_NOT_ALLOWED), or Exhausted (TOO_MANY_CALLS) when too many wait already. A
        call whose caller has gone while it waited is not begun.
        """
        name = call.__name__
        asked = rpc or rpc_of(name)
        who = caller()
        try:
            who.require(scope_of(SERVICE, asked), asked, is_public(SERVICE, asked))
            return await self._on_thread(name, call, *arguments)
        except PermissionDenied as error:
            denied(error, asked, who)
            raise

    async def ping(self) -> None:
        """Returns if PostgreSQL answers; raises Unavailable (DATABASE_UNAVAILABLE). Asks for no key."""
        await self._on_thread("ping", ping, self.registry.context.engine)

    async def _on_thread(self, name: str, call: Callable[[*Q], A], *arguments: *Q) -> A:
        if self._running >= self._most:
            raise Exhausted("TOO_MANY_CALLS", "the registry has too many calls waiting: retry later")
        began = time.perf_counter()
        outcome = "ok"
        self._running += 1
        try:
            run = contextvars.copy_context().run  # who calls, and in which trace
            return await asyncio.get_running_loop().run_in_executor(self._executor, run, call, *arguments)
        except LorauterError as error:
            outcome = error.reason
            raise
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self._running -= 1
            _seconds.labels(name, outcome).observe(time.perf_counter() - began)

    async def run_alone(self, call: Callable[[*Q], A], *arguments: *Q) -> A:
        """As run(), one such call at a time: for those that may need a hundred megabytes each."""
        async with self._alone:
            return await self.run(call, *arguments)

    async def watch(self, request: GetById) -> AsyncIterator[Operation]:
        """Yields an operation, then again whenever it has changed, until it has ended.

        Raises NotFound (OPERATION_NOT_FOUND).
        """
        last: Operation | None = None
        while last is None or not last.state.is_final:
            operation = await self.run(self.registry.get_operation, request)
            if operation != last:
                last = operation
                yield operation
            else:
                await asyncio.sleep(self._watch_seconds)

    def close(self) -> None:
        """Lets running calls finish and drops waiting ones."""
        self._executor.shutdown(cancel_futures=True)


def rpc_of(call: str) -> str:
    """Returns the RPC of a service's method: `CreatePool` for `create_pool`."""
    return "".join(part.capitalize() for part in call.split("_"))
