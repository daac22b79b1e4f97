"""Wake-ups as Celery messages."""

from __future__ import annotations

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from lorauter.telemetry import get_logger

_log = get_logger(__name__)

_TASKS = {
    "index": "lorauter.index.drain",
    "matching": "lorauter.matching.drain",
    "reconcile": "lorauter.index.reconcile",
}
EXPIRE_SECONDS = 30
"""A wake-up that nobody took by then is dropped: the sweep sends another while there is work."""

_FAILURES = (OperationalError, redis.RedisError, OSError)


class CeleryWakeups:
    """Sends a message without arguments; without a broker the sweep finds the work all the same."""

    def __init__(self, app: Celery, redis_url: str) -> None:
        self._app = app
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=2)

    def wake(self, name: str) -> None:
        """See Wakeups."""
        try:
            self._app.send_task(_TASKS[name], retry=False, ignore_result=True, expires=EXPIRE_SECONDS)
        except _FAILURES as error:
            _log.warning("worker.wakeup.not_sent", name=name, error=type(error).__name__)

    def waiting(self, queue: str) -> int:
        """Returns how many messages wait in a queue, which Celery keeps as a Redis list of its name.

        A broker that is away has one, so that nobody adds another.
        """
        try:
            return int(self._redis.llen(queue))
        except _FAILURES:
            return 1

    def is_there(self) -> bool:
        """Returns whether the broker answers."""
        try:
            return bool(self._redis.ping())
        except _FAILURES:
            return False
