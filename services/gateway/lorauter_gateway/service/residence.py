"""The adapters on a replica that loads them: who uses them, what is loaded, what makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, cast

from lorauter.telemetry import get_logger
from lorauter_gateway import metrics
from lorauter_gateway.domain.names import is_served_name
from lorauter_gateway.domain.plan import Skipped, Why
from lorauter_gateway.ports import BackendFailed, Books, BooksAway, Grant, LoadingDriver
from lorauter_gateway.service.canaries import Canaries, Subject
from lorauter_gateway.service.replica import Found, Replica, Verdict

_log = get_logger(__name__)

_POLL_SECONDS = (0.02, 0.2)
_NO_SLOT_SECONDS = 0.5
_REFUSED_SECONDS = 60.0
_LOADING_SHARE = 0.85
_UNDOING_SHARE = 0.1
_AWAY = "Redis, which holds the books of who has loaded what, is away, and it is not known to be loaded"
_NO_BOOKS = "it is not loaded there, and this gateway has no REDIS_URL to load adapters with"

GONE = "its backend is no longer registered"
"""Why an adapter is not served by a replica that went while it was loaded."""


@dataclass(slots=True)
class _Use:
    """This gateway's use of an adapter: so many requests, one lease."""

    count: int = 0
    granted_at: int = 0
    entering: asyncio.Task[int] | None = None
    leaving: asyncio.Task[None] | None = None
    is_slow: asyncio.Event = field(default_factory=asyncio.Event)


class Residence:
    """The adapters of one replica. Without books, only what it is found to hold is used."""

    def __init__(self, replica: Replica, books: Books | None, canaries: Canaries) -> None:
        self._replica = replica
        self._books = books
        self._canaries = canaries
        self._uses: dict[str, _Use] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._no_slot_until = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._listed: dict[str, str] = {}
        self._gauge = metrics.RESIDENT.labels(replica.endpoint.backend_id)
        self.ready: set[str] = set()

    @property
    def _driver(self) -> LoadingDriver:
        return cast(LoadingDriver, self._replica.endpoint.driver)

    def lacks_slot(self, name: str) -> bool:
        """Whether all slots were in use a moment ago, and not for ``name``."""
        return name not in self.ready and monotonic() < self._no_slot_until

    async def hold(self, subject: Subject, may_wait: bool) -> None:
        """Has the adapter there, and keeps it until drop().

        Raises Skipped or BackendFailed. Unless ``may_wait``, what is not there is loaded beside the caller,
        who gets Skipped.
        """
        name = subject.served_name
        self._refuse_quarantined(name)
        use = self._uses.setdefault(name, _Use())
        use.count += 1
        try:
            if not use.granted_at:
                await self._entered(use, subject, may_wait)
        except BaseException:
            self.drop(name)
            raise

    def drop(self, name: str) -> None:
        """Ends one use."""
        use = self._uses[name]
        use.count -= 1
        if use.count == 0 and use.entering is None:
            self._leave(name, use)

    def forget(self, name: str) -> None:
        """Notes that the replica does not know the name that it was asked for."""
        self._set_ready(self.ready - {name})
        use = self._uses.get(name)
        if use is not None and use.granted_at and self._books is not None:
            at, use.granted_at = use.granted_at, 0  # the next use asks the books again
            use.leaving = self._spawn(_quietly(self._books.forget, self._replica.id, name, at))
            use.leaving.add_done_callback(lambda _: self._tidy(name, use))

    async def renew(self) -> None:
        """Keeps the leases of what is in use."""
        names = [name for name, use in self._uses.items() if use.granted_at]
        if names and self._books is not None:
            await _quietly(self._books.renew, self._replica.id, names)

    async def reconcile(self) -> None:
        """Corrects what is known by the replica's own list; raises BackendFailed."""
        since = 0
        granted = {name: use.granted_at for name, use in self._uses.items() if use.granted_at}
        if self._books is not None:
            try:
                since = await self._books.now()
            except BooksAway:
                return
        listed = await self._driver.loaded()
        self._listed = {name: path for name, path in listed.items() if is_served_name(name)}
        if self._books is None:
            if self._checking is None or self._checking.done():
                self._checking = self._spawn(self._check_listed())
            return
        try:
            found = await self._books.reconcile(self._replica.id, list(self._listed), since, self._slots)
        except BooksAway:
            return
        self._set_ready({name for name in found.ready if not self._is_quarantined(name)})
        for name, at in granted.items():
            use = self._uses.get(name)
            if name not in found.ready and use is not None and use.granted_at == at:
                self.forget(name)
        for name in found.adopt:
            self._spawn(self._adopt(name))
        for name in found.unload:
            self._spawn(self._unload_stranger(name))

    async def close(self) -> None:
        """Stops what runs beside requests, and gives all leases back."""
        leaving = {use.leaving for use in self._uses.values() if use.leaving is not None}
        for task in self._tasks - leaving:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, use in self._uses.items():
            if use.granted_at and self._books is not None:
                await _quietly(self._books.release, self._replica.id, name)
        self._set_ready(set())

    @property
    def _slots(self) -> int:
        return self._replica.endpoint.slots

    async def _entered(self, use: _Use, subject: Subject, may_wait: bool) -> None:
        name = subject.served_name
        if use.entering is None:
            use.is_slow.clear()
            use.entering = self._spawn(self._enter(use, subject))
            use.entering.add_done_callback(lambda _: self._has_entered(name, use))
        entering = use.entering
        if not may_wait and not await _is_quick(use, entering):
            raise Skipped(Why.NOT_RESIDENT, "its composite is being loaded beside this request")
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if entering.cancelled() and task is not None and not task.cancelling():
                raise Skipped(Why.NO_BACKEND, GONE) from None
            raise

    def _has_entered(self, name: str, use: _Use) -> None:
        task, use.entering = use.entering, None
        if task is not None and not task.cancelled() and task.exception() is None:
            use.granted_at = task.result()
        if use.count == 0:
            self._leave(name, use)

    def _leave(self, name: str, use: _Use) -> None:
        if use.granted_at and self._books is not None:
            use.granted_at = 0
            release = _quietly(self._books.release, self._replica.id, name)
            use.leaving = self._spawn(release)
            use.leaving.add_done_callback(lambda _: self._tidy(name, use))
        else:
            self._tidy(name, use)

    def _tidy(self, name: str, use: _Use) -> None:
        idle = use.leaving is None or use.leaving.done()
        if use.count == 0 and use.entering is None and idle and self._uses.get(name) is use:
            del self._uses[name]

    async def _enter(self, use: _Use, subject: Subject) -> int:
        """Returns the books' time of a lease, 0 where there is none."""
        name = subject.served_name
        if use.leaving is not None:
            await asyncio.wait({use.leaving})
        if self._books is None:
            if name not in self.ready:
                raise Skipped(Why.NOT_RESIDENT, _NO_BOOKS)
            return 0
        try:
            return await self._granted(self._books, use, subject)
        except BooksAway:
            metrics.BOOKS_AWAY.labels("acquire").inc()
            if name not in self.ready:
                raise Skipped(Why.BOOKS_AWAY, _AWAY) from None
            return 0

    async def _granted(self, books: Books, use: _Use, subject: Subject) -> int:
        name, (pause, most) = subject.served_name, _POLL_SECONDS
        end = monotonic() + books.load_seconds
        while True:
            granted = await books.acquire(self._replica.id, name, self._slots)
            if granted.grant is Grant.READY:
                self._set_ready(self.ready | {name})
                return granted.at
            if granted.grant is Grant.FULL:
                self._no_slot_until = monotonic() + _NO_SLOT_SECONDS
                raise Skipped(Why.NO_SLOT, "all adapter slots of the backend are in use")
            use.is_slow.set()
            if granted.grant is Grant.LOAD:
                return await self._load(books, subject, granted.victims)
            if monotonic() > end or use.count == 0:
                await _quietly(books.release, self._replica.id, name)
                raise Skipped(Why.NOT_RESIDENT, "another gateway has been loading it for too long")
            await asyncio.sleep(pause)
            pause = min(2 * pause, most)

    async def _load(self, books: Books, subject: Subject, victims: Iterable[str]) -> int:
        name, left = subject.served_name, list(victims)
        backend, begun = self._replica.endpoint.backend_id, perf_counter()
        is_gone = True
        try:
            async with asyncio.timeout(_LOADING_SHARE * books.load_seconds):
                while left:
                    await self._evict(books, left[0])
                    left.pop(0)
                is_gone = False
                await self._driver.load(name, self._path(name))
                verdict = await self._canaries.check(self._replica, subject)
            if verdict.found is not Found.PASSED:
                raise Skipped(Why.QUARANTINED, f"it is quarantined there: {verdict.reason}")
        except BooksAway:
            metrics.LOADS.labels(backend, "books_away").inc()
            raise Skipped(Why.BOOKS_AWAY, _AWAY) from None
        except BaseException as error:
            metrics.LOADS.labels(backend, _outcome(error)).inc()
            self._remember(name, error)
            await self._undo(books, name, is_gone, left)
            if isinstance(error, TimeoutError):
                raise Skipped(Why.FAILED, "loading it took too long") from None
            raise
        at = await self._confirm(books, name)
        metrics.LOADS.labels(backend, "ok").inc()
        metrics.LOAD_SECONDS.labels(backend).observe(perf_counter() - begun)
        _log.info("gateway.adapter.loaded", replica=self._replica.id, name=name)
        self._set_ready(self.ready | {name})
        return at

    async def _confirm(self, books: Books, name: str) -> int:
        try:
            at = await books.loaded(self._replica.id, name)
        except BooksAway:
            raise Skipped(Why.BOOKS_AWAY, _AWAY) from None
        if not at:
            await _quietly(books.release, self._replica.id, name)
            raise Skipped(Why.NOT_RESIDENT, "another gateway has taken its slot over")
        return at

    def _remember(self, name: str, error: BaseException) -> None:
        """Leaves an adapter alone for a while that the replica refuses to load."""
        if isinstance(error, BackendFailed) and not error.is_fault and error.retry_after_seconds is None:
            until = monotonic() + _REFUSED_SECONDS
            self._replica.judged(name, Verdict(Found.QUARANTINED, error.error.message, until))

    async def _evict(self, books: Books, name: str) -> None:
        self._set_ready(self.ready - {name})
        await self._driver.unload(name)
        await books.evicted(self._replica.id, name)
        metrics.EVICTIONS.labels(self._replica.endpoint.backend_id).inc()
        _log.info("gateway.adapter.evicted", replica=self._replica.id, name=name)

    async def _undo(self, books: Books, name: str, is_gone: bool, victims: list[str]) -> None:
        if not is_gone:
            try:
                async with asyncio.timeout(_UNDOING_SHARE * books.load_seconds):
                    await self._driver.unload(name)
                is_gone = True
            except (BackendFailed, TimeoutError):
                pass  # the books keep its slot until somebody has unloaded it
        await _quietly(books.failed, self._replica.id, name, is_gone, victims)

    async def _adopt(self, name: str) -> None:
        assert self._books is not None
        try:
            await self._load(self._books, Subject(name), ())
            await self._books.release(self._replica.id, name)
        except (Skipped, BackendFailed, BooksAway) as problem:
            _log.info(
                "gateway.adapter.not_adopted", replica=self._replica.id, name=name, problem=str(problem)
            )

    async def _unload_stranger(self, name: str) -> None:
        assert self._books is not None
        try:
            await self._evict(self._books, name)
        except (BackendFailed, BooksAway) as problem:
            _log.info(
                "gateway.adapter.not_unloaded", replica=self._replica.id, name=name, problem=str(problem)
            )

    async def _check_listed(self) -> None:
        found = set()
        for name in self._listed:
            verdict = self._replica.verdicts.get(name)
            if verdict is None:
                verdict = await self._canaries.check(self._replica, Subject(name))
            if verdict.found is Found.PASSED:
                found.add(name)
        self._set_ready(found)

    def _refuse_quarantined(self, name: str) -> None:
        if self._is_quarantined(name):
            raise Skipped(Why.QUARANTINED, f"it is quarantined there: {self._replica.verdicts[name].reason}")

    def _is_quarantined(self, name: str) -> bool:
        return self._replica.is_quarantined(name)

    def _path(self, name: str) -> str:
        return f"{self._replica.endpoint.adapters_path.rstrip('/')}/{name}"

    def _set_ready(self, ready: set[str]) -> None:
        self._gauge.inc(len(ready) - len(self.ready))
        self.ready = ready

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left


async def _is_quick(use: _Use, entering: asyncio.Task[int]) -> bool:
    """Whether a use begins without a load."""
    slow = asyncio.ensure_future(use.is_slow.wait())
    try:
        await asyncio.wait({entering, slow}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        slow.cancel()
    return entering.done()


def _outcome(error: BaseException) -> str:
    if isinstance(error, Skipped):
        return str(error.why)
    return "failed" if isinstance(error, BackendFailed) else type(error).__name__


async def _quietly(operation: Callable[..., Awaitable[None]], *arguments: object) -> None:
    try:
        await operation(*arguments)
    except BooksAway:
        metrics.BOOKS_AWAY.labels(operation.__name__).inc()
