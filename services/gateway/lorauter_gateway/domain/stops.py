"""Ends an answer before its first stop text: TGI includes it, OpenAI and our gRPC do not."""

from __future__ import annotations

from collections.abc import Sequence


def without_stop(text: str, stop: Sequence[str]) -> str:
    """Returns ``text`` up to the first stop text in it; a token may hold more than the stop text."""
    return text[: min(_places(text, stop), default=len(text))]


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
        places = _places(self._held, self._stop)
        if places:
            self._is_stopped = True
            return self._held[: min(places)]
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


def _places(text: str, stop: Sequence[str]) -> list[int]:
    return [text.index(ending) for ending in stop if ending and ending in text]
