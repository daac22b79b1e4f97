"""Runs the service's blocking calls on a bounded number of threads, for both transports."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from prometheus_client import Histogram

from lorauter.errors import Exhausted, LorauterError
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Operation
from lorauter_registry.service import Registry

Q = TypeVarTuple("Q")
A = TypeVar("A")

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

    async def run(self, call: Callable[[*Q], A], *arguments: *Q) -> A:
        """Returns what ``call(*arguments)`` returns, on a thread.

        Raises Exhausted (TOO_MANY_CALLS) when too many wait already. A call whose caller has gone while
        it waited is not begun.
        """
        if self._running >= self._most:
            raise Exhausted("TOO_MANY_CALLS", "the registry has too many calls waiting: retry later")
        name = getattr(call, "__name__", "call")
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
