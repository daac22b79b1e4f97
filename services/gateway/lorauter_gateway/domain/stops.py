"""Ends an answer before its first stop text: TGI includes it, OpenAI and our gRPC do not."""

from __future__ import annotations

from collections.abc import Sequence


def without_stop(text: str, stop: Sequence[str]) -> str:
    """Returns ``text`` up to the stop text that is complete first; the last token may hold more than it."""
    place = _place(text, stop)
    return text if place is None else text[:place]


class StopTrimmer:
    """Does the same on a stream: holds back what may turn out to be a stop text."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [ending for ending in stop if ending]
        self._held = ""
        self._is_stopped = False

    def push(self, text: str) -> str:
        """Returns what of the answer can be passed on now."""
        if self._is_stopped:
            return ""
        self._held += text
        place = _place(self._held, self._stop)
        if place is not None:
            self._is_stopped = True
            return self._held[:place]
        keep = max((self._overlap(ending) for ending in self._stop), default=0)
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(passed) :]
        return passed

    def finish(self) -> str:
        """Returns the rest of the answer."""
        return "" if self._is_stopped else self._held

    def _overlap(self, ending: str) -> int:
        longest = min(len(ending) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(ending[:n])), 0)


def _place(text: str, stop: Sequence[str]) -> int | None:
    """Returns where the stop text that ends first begins; of several, the longest."""
    found = [
        (text.index(ending) + len(ending), text.index(ending)) for ending in stop if ending and ending in text
    ]
    return min(found)[1] if found else None
