"""Calls to the replicas of a pool's backend: side by side, tried again, and blamed on nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from lorauter.backends import BackendAccess
from lorauter.errors import FailedPrecondition
from lorauter_worker.adapters.bounded_transport import BoundedTransport
from lorauter_worker.adapters.shared_work import SharedWork
from lorauter_worker.ports import Fault

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
"""How long a replica may take to accept a connection, or to say that it is healthy."""
LOOK_SECONDS = 1.0
"""How often a replica that is away is looked for."""

TRIES = 3
"""How often a call is tried that the backend fails at."""

_AWAY = frozenset({408, 425, 429, 502, 503, 504})
_FAILED = frozenset({424, 500})
_REFUSED = frozenset({400, 404, 422})
_KEY_REFUSED = frozenset({401, 403})


class Trouble(StrEnum):
    """Why a call got no answer from a backend that is there."""

    TIMED_OUT = "TIMED_OUT"
    TOO_LARGE = "TOO_LARGE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that got no answer; ``detail`` and ``reason`` are what the backend said."""

    trouble: Trouble
    detail: str
    reason: str = ""

    @property
    def is_not_finite(self) -> bool:
        """Whether the engine said that weights or outputs are not finite."""
        return self.reason.endswith("_NOT_FINITE")

    def __str__(self) -> str:
        return self.detail


Reply = dict[str, Any] | Failure


@dataclass(frozen=True, slots=True)
class Call:
    """A POST that may take ``limit`` seconds.

    When it takes longer, ``probe`` tells whether the replica is at fault: a call that it should answer in
    time. Without one the call itself is.
    """

    path: str
    body: Mapping[str, Any]
    limit: float
    probe: Call | None = None


@dataclass(frozen=True, slots=True)
class _Away:
    """A replica that cannot answer now, for at least ``wait`` seconds."""

    why: str
    wait: float = 0.0


class Replicas:
    """Servers that answer alike, with at most ``in_flight`` calls at once on each."""

    def __init__(
        self, urls: Sequence[str], timeout_seconds: float, access: BackendAccess, in_flight: int = 1
    ) -> None:
        """``timeout_seconds``: how long no replica may answer before the backend counts as away."""
        self.urls = [url.rstrip("/") for url in urls]
        self.timeout_seconds = timeout_seconds
        self._access = access
        self._in_flight = in_flight
        self._slots = [url for _ in range(in_flight) for url in self.urls]
        self._away: dict[str, float] = {}
        """When each replica that is away is looked for again, by time.monotonic()."""
        self._looking = threading.Lock()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=len(self._slots))
        # redirects are not followed: they would send validation sets where nobody registered a backend
        self._client = httpx.Client(
            trust_env=False,
            headers={"accept-encoding": "identity", **access.headers},
            transport=BoundedTransport(limits, access.context()),
        )

    def close(self) -> None:
        """Releases connections."""
        self._client.close()

    def alone(self, url: str) -> Replicas:
        """Returns one of the replicas by itself, to be closed."""
        return Replicas([url], self.timeout_seconds, self._access, self._in_flight)

    def keep(self, urls: Collection[str]) -> None:
        """Calls no others of the replicas any more."""
        self.urls = [url for url in self.urls if url in urls]
        self._slots = [url for url in self._slots if url in urls]

    def map(self, calls: Sequence[Call]) -> list[Reply]:
        """Returns the replies in order. A replica that is away leaves its share to the others.

        Raises Unavailable (BACKEND_UNAVAILABLE) when none answers for ``timeout_seconds``, and
        FailedPrecondition (BACKEND_REFUSED, BACKEND_KEY_REFUSED) when one answers what no backend does.
        """
        if not calls:
            return []
        work: SharedWork[Reply] = SharedWork(len(calls), self.timeout_seconds)
        slots = self._slots[: max(len(calls), len(self.urls))]  # the first ones are one of each replica
        if len(slots) == 1:
            self._serve(slots[0], calls, work)
            return work.result()
        threads = ThreadPoolExecutor(len(slots))
        try:
            for url in slots:
                threads.submit(self._serve, url, calls, work)
            return work.result()
        finally:
            work.end()
            threads.shutdown(wait=False)  # one may still look for a replica that hangs

    def get(self, path: str) -> dict[str, dict[str, Any]]:
        """Returns what each replica that is there answers to a GET, by its URL.

        Raises FailedPrecondition (BACKEND_KEY_REFUSED).
        """
        found = {}
        limit = min(CONNECT_SECONDS, self.timeout_seconds / 4)
        for url in self.urls:
            try:
                response = self._client.get(url + path, timeout=limit)
                if response.status_code in _KEY_REFUSED:
                    raise key_refused(url, response.status_code)
                found[url] = response.raise_for_status().json()
            except (httpx.HTTPError, ValueError):
                continue
        return {url: body for url, body in found.items() if isinstance(body, dict)}

    def _serve(self, url: str, calls: Sequence[Call], work: SharedWork[Reply]) -> None:
        """Takes calls for one slot of a replica until none is left."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while not work.is_over():
                if not self._is_there(url):
                    work.rest(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                elif (place := work.take()) is not None:
                    outcome = self._try(url, calls[place])
                    if _has_failed(outcome) and work.tries(place) < TRIES:
                        outcome = _Away(str(outcome))
                    if isinstance(outcome, _Away):
                        self._away[url] = time.monotonic() + max(pause, outcome.wait)
                        work.give_back(place, f"{url} last: {outcome.why}")
                    else:
                        work.put(place, outcome)
                        pause = FIRST_PAUSE_SECONDS
        except BaseException as error:
            work.fail(error)

    def _is_there(self, url: str) -> bool:
        """Looks, now and then, whether a replica that was away answers again, whatever it says."""
        with self._looking:
            due = self._away.get(url)
            if due is None:
                return True
            if time.monotonic() < due:
                return False
            self._away[url] = time.monotonic() + LONGEST_PAUSE_SECONDS  # nobody else looks meanwhile
        try:
            self._client.get(f"{url}/health", timeout=CONNECT_SECONDS)
        except httpx.HTTPError:
            self._away[url] = time.monotonic() + LOOK_SECONDS
            return False
        self._away.pop(url, None)
        return True

    def _try(self, url: str, call: Call) -> Reply | _Away:
        limit = httpx.Timeout(call.limit, connect=min(call.limit, CONNECT_SECONDS))
        try:
            response = self._client.post(url + call.path, json=call.body, timeout=limit)
        except httpx.ReadTimeout:
            late = f"no answer within {call.limit:.3g} s"
            if call.probe is None or _is_answered(self._try(url, call.probe)):
                return Failure(Trouble.TIMED_OUT, late)
            return _Away(f"{late}, by the base neither")
        except httpx.HTTPError as error:
            return _Away(type(error).__name__)
        return _read(url, response)


def fault_of(failure: Failure) -> Fault:
    """Returns what is wrong with an adapter that fails so at what the base answers."""
    if failure.trouble is Trouble.TIMED_OUT:
        return Fault.TOO_SLOW
    return Fault.NOT_FINITE if failure.is_not_finite else Fault.DOES_NOT_LOAD


def protocol_error(url: str, what: str) -> FailedPrecondition:
    """Returns the error for what no backend of the registered kind answers."""
    return FailedPrecondition(
        "BACKEND_REFUSED", f"{url} {what}: check that the backend's kind and url are right", backend=url
    )


def key_refused(url: str, status: int) -> FailedPrecondition:
    """Returns the error for a server that does not take our key."""
    message = f"{url} answered {status} to the worker's key: check LORAUTER_BACKEND_KEY"
    return FailedPrecondition("BACKEND_KEY_REFUSED", message, backend=url)


def _has_failed(reply: Reply | _Away) -> bool:
    return isinstance(reply, Failure) and reply.trouble is Trouble.FAILED


def _is_answered(reply: Reply | _Away) -> bool:
    if isinstance(reply, Failure):
        return reply.trouble is not Trouble.TIMED_OUT
    return isinstance(reply, dict)


def _read(url: str, response: httpx.Response) -> Reply | _Away:
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    if status == 200:
        if isinstance(body, dict):
            return body
        raise protocol_error(url, "answered 200 without a JSON object")
    said = _message(body)
    detail = f"{status} {said or response.text[:200]}"
    if status in _AWAY:
        return _Away(detail, _retry_after(response))
    if status == 413:
        return Failure(Trouble.TOO_LARGE, detail)
    reason = str(body.get("reason", "")) if isinstance(body, dict) else ""
    refused = Failure(Trouble.REFUSED, said, reason)
    if refused.is_not_finite or (status in _REFUSED and said):
        return refused
    if status in _KEY_REFUSED:
        raise key_refused(url, status)
    if status in _FAILED:
        return Failure(Trouble.FAILED, detail)
    raise protocol_error(url, f"answered {detail}")


def _message(body: object) -> str:
    """Returns what an error says: TGI's and the engine's ``error``, OpenAI's and vLLM's ``error.message``."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    if error is None and isinstance(body, dict) and body.get("object") == "error":
        error = body.get("message")
    return error[:500] if isinstance(error, str) else ""


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isdigit() else 0.0
