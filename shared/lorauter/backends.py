"""How inference servers are called: with a key of their own, over TLS where their address says so."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping

from lorauter.tls import Pem, Tls, WatchedTls, client_context

_LOOK_SECONDS = 1.0


class BackendAccess:
    """The same for all inference servers. Callers' own keys never reach them."""

    def __init__(self, key: str = "", tls: Tls | None = None) -> None:
        """``key`` is what TGI, vLLM and the engine were started with, empty: none.

        ``tls`` adds to whom the system trusts. Raises InvalidArgument (TLS_FILES_UNUSABLE).
        """
        self.headers: Mapping[str, str] = {"authorization": f"Bearer {key}"} if key else {}
        self._tls = tls or Tls()
        self._watched = WatchedTls(tls) if tls is not None else None
        self._pem: Pem | None = None
        self._context: ssl.SSLContext | None = None
        self._look_at = 0.0

    def context(self) -> ssl.SSLContext:
        """Returns what a connection that is opened now uses, the same object until the files change."""
        if self._context is not None and (self._watched is None or time.monotonic() < self._look_at):
            return self._context
        self._look_at = time.monotonic() + _LOOK_SECONDS
        pem = self._watched.current() if self._watched is not None else None
        if self._context is None or pem is not self._pem:
            self._context = client_context(self._tls, trusts_system=True)
            self._pem = pem
        return self._context


PLAIN = BackendAccess()
"""No key, and whom the system trusts."""
