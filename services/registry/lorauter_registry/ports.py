"""What the registry needs from outside itself, by role."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

PUBLIC_HOSTS = ("huggingface.co", "hf.co")
"""The hub, and where it keeps large files: `cdn-lfs.huggingface.co`, `cas-bridge.xethub.hf.co` and others."""

DOWNLOAD_SECONDS = 600.0
"""How long one file of the hub may take, however steadily it comes."""


class Wakeups(Protocol):
    """Tells workers that there is work. The truth is the outbox; a lost wake-up costs seconds."""

    def wake(self, topics: Collection[str]) -> None:
        """Wakes the workers of ``index`` or ``matching``; returns at once and never raises."""


class Folders(Protocol):
    """Folders on the registry's machine that callers may name."""

    def allowed(self, path: str) -> Path:
        """Returns the folder, links resolved.

        Raises InvalidArgument (PATH_NOT_ALLOWED), NotFound (PATH_NOT_FOUND).
        """

    def opened(self, path: str) -> AbstractContextManager[Path]:
        """Returns a path that means the allowed folder until the end, whatever becomes of its name.

        Raises as allowed() does.
        """


class Hub(Protocol):
    """A hub that adapters are fetched from."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Returns a folder with the two files of ``namespace/name@commit``, gone at the end.

        Raises InvalidArgument (INVALID_HUB_NAME), NotFound (HUB_NOT_FOUND), PermissionDenied
        (HUB_FORBIDDEN, HUB_HOST_NOT_ALLOWED), UnprocessableRequest (ADAPTER_TOO_LARGE) or Unavailable
        (HUB_UNAVAILABLE).
        """
