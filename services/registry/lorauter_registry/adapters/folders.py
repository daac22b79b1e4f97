"""The folders on the registry's machine that callers may name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lorauter.access import caller
from lorauter.errors import InvalidArgument, NotFound
from lorauter.lora.strict import pinned

TENANT = "{tenant}"
"""Stands in a root for the caller's tenant, so that each has a folder of its own."""


class RootedFolders:
    """Folders under configured roots; links are resolved before they are judged."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._given = tuple(map(str, roots))

    @property
    def _roots(self) -> tuple[Path, ...]:
        roots = (root.replace(TENANT, caller().tenant) if TENANT in root else root for root in self._given)
        return tuple(Path(root).resolve() for root in roots)

    def allowed(self, path: str) -> Path:
        """Returns the folder, links resolved.

        Raises InvalidArgument (PATH_NOT_ALLOWED) or, under a root only, NotFound (PATH_NOT_FOUND).
        """
        roots = self._roots
        try:
            folder = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):
            raise self._refused() from None
        if not Path(path).is_absolute() or not any(folder.is_relative_to(root) for root in roots):
            raise self._refused()
        if not _is_folder(folder):
            raise _not_found(path)
        return folder

    @contextmanager
    def opened(self, path: str) -> Iterator[Path]:
        """Returns a path that means the allowed folder until the end, whatever becomes of its name.

        What is looked at is thus what was judged, though the caller may put a link in its place meanwhile.
        Raises as allowed() does.
        """
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(pinned(self.allowed(path)))
            except OSError:
                raise _not_found(path) from None
            yield folder

    def _refused(self) -> InvalidArgument:
        allowed = ", ".join(str(root) for root in self._roots) or "none is configured"
        return InvalidArgument(
            "PATH_NOT_ALLOWED",
            f"the path is not an absolute one under the registry's roots ({allowed}): "
            "put the files there, or name the folder in LORAUTER_ADAPTER_ROOTS",
            field="path",
        )


def _not_found(path: str) -> NotFound:
    return NotFound(
        "PATH_NOT_FOUND", f"{path[:200]!r} is not a folder on the registry's machine", field="path"
    )


def _is_folder(path: Path) -> bool:
    # is_dir() raises for names longer than the file system takes
    try:
        return path.is_dir()
    except OSError:
        return False
