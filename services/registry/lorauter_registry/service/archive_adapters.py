"""Takes adapters' files out of an archive: checked like any stranger's before the store has them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lorauter.errors import LorauterError, NotFound, Unavailable, UnprocessableRequest
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, CheckedAdapter, Limits, check_adapter
from lorauter.lora.config import MAX_CONFIG_BYTES
from lorauter.lora.store import AdapterStore
from lorauter_registry.domain.archives.framing import refused
from lorauter_registry.domain.archives.rows import AdapterVersionRow
from lorauter_registry.domain.resources import AdapterState

DISPENSABLE = frozenset({AdapterState.RETIRED, AdapterState.QUARANTINED})
"""States of versions whose files may be gone."""

Modules = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The versions that have the same files, and the modules of their pools."""

    rows: Sequence[AdapterVersionRow]
    modules: Sequence[Modules]


class ArchiveAdapters:
    """Adapters by their digests, in order, the configuration before the weights.

    ``count`` is of those that are complete. Raises UnprocessableRequest (ARCHIVE_MALFORMED,
    ARCHIVE_TOO_LARGE, ARCHIVE_INCONSISTENT, or the reasons of check_adapter()) and Unavailable
    (ADAPTER_STORE_UNAVAILABLE).
    """

    def __init__(self, store: AdapterStore, limits: Limits) -> None:
        self.count = 0
        self._store = store
        self._limits = limits
        self._last = ("", WEIGHTS_FILE)
        self._folder: Path | None = None
        self._file: IO[bytes] | None = None
        self._wanted = Wanted((), ())
        self._seen: set[str] = set()

    def begin(self, digest: str, name: str, size: int, wanted: Wanted | None) -> None:
        """One of an adapter's two files begins; ``wanted`` is None if no version has it."""
        last_digest, last_name = self._last
        is_next = digest == last_digest if name == WEIGHTS_FILE else digest > last_digest
        if not is_next or name == last_name:
            raise refused("ARCHIVE_MALFORMED", f"has {name} of adapter {digest} where it does not belong")
        if wanted is None:
            raise refused("ARCHIVE_INCONSISTENT", f"holds adapter {digest}, which no version names")
        most = MAX_CONFIG_BYTES if name == CONFIG_FILE else self._limits.max_bytes
        if size > most:
            raise refused(
                "ARCHIVE_TOO_LARGE", f"has {name} of adapter {digest} with {size} bytes, over {most}"
            )
        self._last, self._wanted = (digest, name), wanted
        if name == CONFIG_FILE:
            self._folder = (
                None if self._is_stored(digest) else Path(tempfile.mkdtemp(prefix="lorauter-import-"))
            )
        if self._folder is not None:
            self._file = (self._folder / name).open("xb")

    def data(self, piece: bytes) -> None:
        """Bytes of the file."""
        if self._file is not None:
            self._file.write(piece)

    def finish(self) -> None:
        """The file is complete."""
        if self._file is not None:
            self._file.close()
            self._file = None
        digest, name = self._last
        if name == WEIGHTS_FILE:
            self._admit(digest)
            self.close()
            self.count += 1

    def require(self, digest: str, wanted: Wanted) -> None:
        """Returns if an adapter came or is in the store, or if all its versions can do without."""
        if digest in self._seen:
            return
        try:
            folder = self._store.verify(digest)
        except NotFound:
            needed = [row.adapter_id for row in wanted.rows if row.state not in DISPENSABLE]
            if needed:
                raise refused(
                    "ARCHIVE_INCONSISTENT",
                    f"lacks the files of adapter {needed[0]!r}, {digest}, as the store does: bring the "
                    "folder into the store, or export with weights",
                    digest=digest,
                ) from None
            return
        self._compare(check_adapter(folder, wanted.modules[0], self._limits), digest, wanted)

    def close(self) -> None:
        """Removes what came in part."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _is_stored(self, digest: str) -> bool:
        try:
            self._store.verify(digest)
        except LorauterError:
            return False
        return True

    def _admit(self, digest: str) -> None:
        modules = self._wanted.modules
        try:
            if self._folder is not None:
                checked = self._store.admit(self._folder, modules[0], self._limits)
            else:
                checked = check_adapter(self._store.path(digest), modules[0], self._limits)
        except OSError as error:
            raise Unavailable(
                "ADAPTER_STORE_UNAVAILABLE",
                f"the adapter store cannot be written ({error.strerror}): see to its disk, then import again",
            ) from error
        except UnprocessableRequest as error:
            named = f"has adapter {self._wanted.rows[0].adapter_id!r} that cannot be served: {error.message}"
            raise refused(error.reason, named, **error.metadata) from None
        self._compare(checked, digest, self._wanted)
        self._seen.add(f"sha256:{digest}")

    def _compare(self, checked: CheckedAdapter, digest: str, wanted: Wanted) -> None:
        if checked.digest.removeprefix("sha256:") != digest.removeprefix("sha256:"):
            raise refused("ARCHIVE_DAMAGED", f"has other files under adapter {digest} than its digest says")
        config = checked.config
        for row in wanted.rows:
            said = (row.base_model, row.rank, row.alpha, row.rslora, row.target_modules, row.size_bytes)
            found = (config.base_model, config.rank, config.alpha, config.rslora, config.target_modules)
            if said != (*found, checked.size_bytes):
                raise refused(
                    "ARCHIVE_INCONSISTENT",
                    f"says of adapter {row.adapter_id!r} version {row.version} what its files do not",
                )
        for modules in wanted.modules[1:]:
            if modules != wanted.modules[0]:
                check_adapter(self._store.path(checked.digest), modules, self._limits)
