"""What channels are opened with: TLS from files that may be replaced, or nothing."""

from __future__ import annotations

import time

import grpc

from lorauter.tls import Pem, Tls, WatchedTls

_LOOK_SECONDS = 1.0
"""Pause between looks at the files: channels are asked for at every call."""


class ChannelTls:
    """The credentials of channels, the same object until the files change; None where there is no TLS."""

    def __init__(self, tls: Tls | None) -> None:
        """Raises InvalidArgument (TLS_FILES_UNUSABLE), which names the setting."""
        self._watched = WatchedTls(tls) if tls is not None else None
        self._pem: Pem | None = None
        self._credentials: grpc.ChannelCredentials | None = None
        self._look_at = 0.0

    def current(self) -> grpc.ChannelCredentials | None:
        """Returns what a channel that is used now should have been opened with."""
        if self._watched is None or (self._credentials is not None and time.monotonic() < self._look_at):
            return self._credentials
        self._look_at = time.monotonic() + _LOOK_SECONDS
        pem = self._watched.current()
        if pem is not self._pem:
            self._credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
            self._pem = pem
        return self._credentials
