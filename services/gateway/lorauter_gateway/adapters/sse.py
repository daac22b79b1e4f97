"""Reads server-sent events from a response's bytes."""

from __future__ import annotations

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A backend that sends a longer line is broken."""


class EventReader:
    """Finds the data of events in chunks cut anywhere; comments and other fields are skipped.

    Splits at line feeds only: str.splitlines would also split at U+2028 and U+0085, which JSON
    texts may hold unescaped. Servers send one data line per event.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Returns the data of the events that ``chunk`` completes; raises ValueError on too long a line."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        whole = bytes(self._rest) + chunk[:end] if self._rest else chunk[:end]
        self._rest.clear()
        self._keep(chunk[end + 1 :])
        lines = whole.split(b"\n")
        if len(whole) > MAX_EVENT_BYTES and max(map(len, lines)) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of over {MAX_EVENT_BYTES} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def _keep(self, part: bytes) -> None:
        self._rest += part
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of over {MAX_EVENT_BYTES} bytes")
