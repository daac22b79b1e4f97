"""Serves health, readiness and metrics from a thread beside Celery's main loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn

from lorauter.server.http import create_app
from lorauter_worker.config import Settings

_MAX_BODY_BYTES = 1024


class HttpThread:
    """A small HTTP server; listens from construction on, answers from start() on."""

    def __init__(self, settings: Settings, lacking: Callable[[], str]) -> None:
        """``lacking`` returns an empty text if the worker can work, else what it lacks."""

        async def readiness() -> str:
            return lacking()

        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.create_server((settings.host, settings.http_port), family=family)
        self.port = int(self._socket.getsockname()[1])
        app = create_app("lorauter worker", readiness, _MAX_BODY_BYTES)
        tls = settings.server_tls()
        context = (lambda *_: tls.context()) if tls else None
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, ssl_context_factory=context)
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])
