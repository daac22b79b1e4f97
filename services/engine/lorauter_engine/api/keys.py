"""Asks callers for the key that inference servers are called with."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from lorauter_engine.api.wire import render

_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/healthz", "/readyz", "/metrics"})
"""What may be looked at without a key: probes and Prometheus."""

_MESSAGE = "this engine was started with LORAUTER_BACKEND_KEY: send it as `authorization: Bearer`"


class RequiresKey:
    """ASGI middleware: answers 401, before anything of a body is read, unless the one key is sent, once."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http" or _is_open(scope) or self._is_sent(scope):
            await self.app(scope, receive, send)
            return
        answer = render(401, "BACKEND_KEY_REFUSED", _MESSAGE, None, scope["path"])
        answer.headers["www-authenticate"] = "Bearer"
        await answer(scope, receive, send)

    def _is_sent(self, scope: Scope) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, key = (sent[0] if len(sent) == 1 else b"").partition(b" ")
        # of digests, so that neither content nor length of what is right shows in the time that it takes
        is_right = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest)
        return is_right and kind.lower() == b"bearer"


def _is_open(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and scope["path"] in _OPEN_PATHS
