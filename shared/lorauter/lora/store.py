"""The content-addressed adapter store: the only place that services load adapters from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lorauter.errors import FailedPrecondition, NotFound, UnprocessableRequest
from lorauter.identifiers import backend_name
from lorauter.lora.check import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckedAdapter,
    Limits,
    check_adapter,
    check_source,
    combine_digest,
    open_file,
)
from lorauter.lora.config import MAX_CONFIG_BYTES
from lorauter.lora.strict import open_regular, refused

STAGING_PREFIX = ".staging-"
STAGING_SECONDS = 3600.0
"""Staging folders older than this were left by a process that died."""

_COPY_BYTES = 1024 * 1024
_FOLDER = re.compile(r"[0-9a-f]{64}")


def parse_digest(text: str) -> str:
    """Returns "sha256:<64 hex>" for a digest with or without its prefix.

    Raises InvalidArgument (INVALID_DIGEST).
    """
    return f"sha256:{backend_name(text)}"


class AdapterStore:
    """Adapters under ``root``, each in a folder named by its digest; what is in it never changes.

    Nothing is created until the first put, so that readers need no write permission.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Creates the store and proves that it can be written, for services that put adapters in.

        Raises FailedPrecondition (ADAPTER_STORE_UNUSABLE).
        """
        try:
            with Staging(self.root):
                pass
        except OSError as error:
            raise FailedPrecondition(
                "ADAPTER_STORE_UNUSABLE",
                f"LORAUTER_ADAPTER_STORE: {self.root} cannot be written ({error.strerror}): name a folder "
                "that this service may create or write",
            ) from None

    def put(self, directory: Path) -> str:
        """Copies an adapter's two files in and returns its digest; storing it again is a no-op.

        The folder appears at once and complete, or not at all. Raises UnprocessableRequest.
        """
        with Staging(self.root) as staging:
            digest = _copy_in(directory, staging.path, Limits().max_bytes)
            self._publish(staging.path, digest)
        return digest

    def admit(
        self, directory: Path, modules: Mapping[str, tuple[int, int]], limits: Limits | None = None
    ) -> CheckedAdapter:
        """Like check_adapter, and stores it.

        What is checked is the copy, so the source cannot change in between. Raises UnprocessableRequest
        as check_adapter does; nothing is stored then.
        """
        limits = limits or Limits()
        check_source(directory, modules, limits)
        with Staging(self.root) as staging:
            _copy_in(directory, staging.path, limits.max_bytes)
            checked = check_adapter(staging.path, modules, limits)
            self._publish(staging.path, checked.digest)
        return checked

    def path(self, digest: str) -> Path:
        """Returns the folder of a stored adapter; raises NotFound (ADAPTER_NOT_STORED)."""
        folder = self.root / backend_name(digest)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                regular = stat.S_ISREG((folder / name).lstat().st_mode)
            except OSError:
                regular = False
            if not regular:
                raise NotFound("ADAPTER_NOT_STORED", f"adapter {digest} is not in the store", digest=digest)
        return folder

    def verify(self, digest: str) -> Path:
        """Hashes a stored adapter again and returns its folder.

        Raises NotFound (ADAPTER_NOT_STORED), or UnprocessableRequest (ADAPTER_CORRUPT) if the content
        is no longer that of the digest.
        """
        folder = self.path(digest)
        try:
            hashes = [_hash(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        except OSError:
            raise NotFound("ADAPTER_NOT_STORED", f"adapter {digest} cannot be read from the store") from None
        if combine_digest(*hashes) != parse_digest(digest):
            raise refused(
                "ADAPTER_CORRUPT",
                f"adapter {digest} has changed in the store: remove its folder and register it again",
                digest=digest,
            )
        return folder

    def digests(self) -> list[str]:
        """Returns the digests of all stored adapters, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            f"sha256:{entry.name}" for entry in self.root.iterdir() if _FOLDER.fullmatch(entry.name)
        )

    def _publish(self, staged: Path, digest: str) -> None:
        target = self.root / backend_name(digest)
        try:
            self.verify(digest)
            return
        except NotFound:
            pass
        except UnprocessableRequest:
            # Damaged since: out of the way with it, under a name that the sweep removes.
            target.rename(self.root / f"{STAGING_PREFIX}damaged-{time.time_ns()}")
        try:
            staged.rename(target)
        except OSError:
            # Somebody else stored the same content first; anything else is an error.
            self.verify(digest)
            return
        sync_folder(self.root)


class Staging:
    """A folder of our own inside the store, gone afterwards unless it was renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Staging:
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"{STAGING_PREFIX}*"):
            # Another writer's may be gone since it was listed.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.lstat().st_mtime > STAGING_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.root))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _copy_in(source: Path, target: Path, max_bytes: int) -> str:
    hashes = [
        _copy(source, target, name, limit)
        for name, limit in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, max_bytes))
    ]
    target.chmod(0o755)
    sync_folder(target)
    return combine_digest(*hashes)


def _copy(source: Path, target: Path, name: str, max_bytes: int) -> str:
    hashed = hashlib.sha256()
    copied = 0
    with open_file(source, name, alone=True) as reader, (target / name).open("xb") as writer:
        while data := reader.read(_COPY_BYTES):
            copied += len(data)
            if copied > max_bytes:
                raise refused("ADAPTER_TOO_LARGE", f"{name} is over {max_bytes} bytes")
            hashed.update(data)
            writer.write(data)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        os.fsync(writer.fileno())
    return hashed.hexdigest()


def _hash(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes sure that what a folder lists outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
