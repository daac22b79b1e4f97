"""One log file for each process, bounded in size."""

from __future__ import annotations

import shutil
from pathlib import Path

MAX_LOG_BYTES = 8 * 1024 * 1024
"""When a log is larger it becomes ``<name>.log.1``; so a process keeps at most twice this."""

_TAIL_BYTES = 2000


class LogFolder:
    """The logs of a suite: ``<folder>/<name>.log``."""

    def __init__(self, folder: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Returns the file of a process."""
        return self.folder / f"{name}.log"

    def trim(self) -> None:
        """Copies what is too long aside and empties it, under the writer, which appends."""
        for path in self.folder.glob("*.log"):
            if path.stat().st_size > self._max_bytes:
                shutil.copyfile(path, path.with_suffix(".log.1"))
                with path.open("r+b") as file:
                    file.truncate(0)

    def size(self, name: str) -> int:
        """Returns how long a process's log is now, in bytes."""
        path = self.path(name)
        return path.stat().st_size if path.exists() else 0

    def tail(self, name: str, since: int = 0) -> str:
        """Returns the end of a process's log, whole lines only, and nothing before byte ``since``."""
        begin = max(since, self.size(name) - _TAIL_BYTES)
        try:
            with self.path(name).open("rb") as file:
                file.seek(begin)
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return text.strip() if begin == since else text.partition("\n")[2].strip()
