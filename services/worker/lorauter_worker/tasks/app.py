"""The Celery application: it carries wake-ups, never work. The work is in the outbox."""

from __future__ import annotations

from typing import Any

from celery import Celery

VISIBILITY_TIMEOUT_SECONDS = 300
"""When a lost worker's message comes back; above the hard limit, so that no running task is doubled."""

HARD_LIMIT_SECONDS = 240
SOFT_LIMIT_SECONDS = 180
"""A task works in slices of seconds; one that reaches these hangs."""

DRAIN_INDEX = "lorauter.index.drain"
DRAIN_MATCHING = "lorauter.matching.drain"
RECONCILE = "lorauter.index.reconcile"

_TASK = "lorauter_worker.tasks.requests:WakeupTask"

QUEUE_OF = {DRAIN_INDEX: "index", RECONCILE: "index", DRAIN_MATCHING: "matching"}
"""The queue of each task."""


def create_app(redis_url: str, drain_seconds: float = 5.0) -> Celery:
    """Returns the application for a broker; connects to nothing yet."""
    app = Celery("lorauter", broker=redis_url, set_as_current=False, task_cls=_TASK)
    app.conf.update(_configuration(drain_seconds))
    return app


def _configuration(drain_seconds: float) -> dict[str, Any]:
    return {
        "task_queues": {name: {"routing_key": name} for name in sorted(set(QUEUE_OF.values()))},
        "task_routes": {name: {"queue": queue} for name, queue in QUEUE_OF.items()},
        "task_default_queue": "index",
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_time_limit": HARD_LIMIT_SECONDS,
        "task_soft_time_limit": SOFT_LIMIT_SECONDS,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": 120.0,
        "worker_soft_shutdown_timeout": drain_seconds,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 2.0,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 2.0,
            "socket_timeout": 10.0,
            "socket_keepalive": True,
        },
    }
