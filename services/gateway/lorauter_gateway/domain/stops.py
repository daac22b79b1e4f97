"""Takes the stop text off an answer: TGI includes it, OpenAI and our gRPC do not."""

from __future__ import annotations

from collections.abc import Sequence


def without_stop(text: str, stop: Sequence[str]) -> str:
    """Returns ``text`` up to the stop text that it ends with, if it ends with one."""
    for ending in sorted(stop, key=len, reverse=True):
        if ending and text.endswith(ending):
            return text[: -len(ending)]
    return text


class StopTrimmer:
    """Does the same on a stream: holds back what may turn out to be a stop text."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [ending for ending in stop if ending]
        self._held = ""

    def push(self, text: str) -> str:
        """Returns what of the answer can be passed on now."""
        self._held += text
        keep = max((self._overlap(ending) for ending in self._stop), default=0)
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(passed) :]
        return passed

    def finish(self) -> str:
        """Returns the rest of the answer."""
        return without_stop(self._held, self._stop)

    def _overlap(self, ending: str) -> int:
        longest = min(len(ending), len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(ending[:n])), 0)
