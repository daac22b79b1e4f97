"""Wakes workers through Celery's broker, beside the calls and never in their way."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Collection
from functools import partial

import redis
from celery import Celery

from lorauter.failpoints import reach
from lorauter.telemetry import get_logger

_log = get_logger(__name__)

SOCKET_TIMEOUT_SECONDS = 1.0
"""How long the broker may take before it counts as away."""

EXPIRE_SECONDS = 30
"""A wake-up that nobody took by then is dropped: the sweep has seen to its work long before."""

_TASKS = {"index": "lorauter.index.drain", "matching": "lorauter.matching.drain"}


class CeleryWakeups:
    """Sends one wake-up for all changes that came while the last was being sent.

    While one waits in the queue no other is sent: whoever takes it sees all changes, and the broker does
    not fill up while no worker is there. With the broker away wake-ups are dropped, which is logged once
    each time.
    """

    def __init__(self, redis_url: str) -> None:
        self._app = _celery_app(redis_url)
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        )
        self._wanted: set[str] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._away = False
        # With the context the thread's log lines name the service, as all others do.
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="wakeups", daemon=True)
        self._thread.start()

    def wake(self, topics: Collection[str]) -> None:
        """Wakes the workers of topics; returns at once and never raises."""
        with self._changed:
            self._wanted.update(topics)
            self._changed.notify()

    def close(self) -> None:
        """Sends what is wanted and ends; waits at most as long as the broker may take."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(3 * SOCKET_TIMEOUT_SECONDS)
        self._app.close()
        self._redis.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closing)
                topics, self._wanted = sorted(self._wanted), set()
                closing = self._closing
            for topic in topics:
                self._send(topic)
            if closing:
                return

    def _send(self, topic: str) -> None:
        reach("wake-up")
        try:
            if not self._redis.llen(topic):
                self._app.send_task(
                    _TASKS[topic], queue=topic, retry=False, ignore_result=True, expires=EXPIRE_SECONDS
                )
        except Exception as error:
            if not self._away:
                _log.warning("registry.broker.lost", error=type(error).__name__)
            self._away = True
        else:
            if self._away:
                _log.info("registry.broker.found")
            self._away = False


def _celery_app(redis_url: str) -> Celery:
    app = Celery("lorauter", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_publish_retry=False,
        broker_connection_timeout=SOCKET_TIMEOUT_SECONDS,
        broker_transport_options={
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
            "max_retries": 0,
        },
    )
    return app
