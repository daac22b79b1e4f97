"""Composites beside the adapters that they are made from: written once, whole, by whoever comes first."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorauter.errors import NotFound, Unavailable, UnprocessableRequest
from lorauter.identifiers import COMPOSITE_PREFIX
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, Limits, combine_digest
from lorauter.lora.composite import Composed, composed
from lorauter.lora.config import AdapterConfig
from lorauter.lora.recipe import Recipe
from lorauter.lora.servers import MAX_RANK
from lorauter.lora.store import STAGING_PREFIX, AdapterStore, Staging, sync_folder
from lorauter.lora.strict import open_regular, parse_object, refused
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter

RECORD_FILE = "composite.json"
"""Beside a composite's two files: its recipe, the digest of its content, and what a truncation lost."""

LOCKS = ".locks"
"""Empty files that are locked while a composite is written; they stay, so that nobody locks a removed one."""

_MAX_RECORD_BYTES = 1024 * 1024
_NAME = re.compile(re.escape(COMPOSITE_PREFIX) + "[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Composite:
    """A composite that is stored, an ordinary adapter in ``folder``.

    ``digest`` is that of its two files, ``recipe`` that of the recipe. ``members`` are (digest, weight).
    ``error`` is what a truncation lost, 0 without one, and ``errors`` the same by module: see Composed.
    """

    name: str
    folder: Path
    digest: str
    recipe: str
    members: tuple[tuple[str, float], ...]
    rank: int
    error: float
    errors: dict[str, float]


class CompositeStore:
    """Composites in the folder of an adapter store, each in a folder of its name that never changes."""

    def __init__(self, adapters: AdapterStore) -> None:
        self.root = adapters.root
        self._adapters = adapters

    def ensure(self, recipe: Recipe) -> Composite:
        """Returns the recipe's composite, after writing it if it is not there or damaged.

        Of several processes one writes, the others wait. The folder appears at once and complete, or not at
        all. Raises NotFound (ADAPTER_NOT_STORED) for a member, UnprocessableRequest for what composed() and
        AdapterStore.verify() refuse (``adapter`` in the metadata is the member), FailedPrecondition
        (POOL_MODULES_UNKNOWN), Unavailable (ADAPTER_STORE_UNAVAILABLE).
        """
        if (found := self._sound(recipe)) is not None:
            return found
        try:
            with self._locked(recipe.name):
                if self._sound(recipe) is None:
                    self._write(recipe)
        except OSError as error:
            raise Unavailable(
                "ADAPTER_STORE_UNAVAILABLE",
                f"the adapter store cannot be written ({error.strerror}): see to its disk, then retry",
            ) from error
        return self.get(recipe.name)

    def get(self, name: str) -> Composite:
        """Returns a stored composite after hashing it.

        Raises NotFound (COMPOSITE_NOT_STORED), or UnprocessableRequest (COMPOSITE_CORRUPT) if its content is
        no longer what was written.
        """
        folder = self.root / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise NotFound("COMPOSITE_NOT_STORED", f"composite {name[:80]!r} is not in the store")
        try:
            record = _read_record(folder)
            hashes = [_hash(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)]
            found = _composite(name, folder, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(name) from error
        if combine_digest(*hashes) != found.digest:
            raise _corrupt(name)
        return found

    def names(self) -> list[str]:
        """Returns the names of all stored composites, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if _NAME.fullmatch(entry.name))

    def _sound(self, recipe: Recipe) -> Composite | None:
        try:
            found = self.get(recipe.name)
        except (NotFound, UnprocessableRequest):
            return None
        return found if found.recipe == recipe.digest else None

    def _write(self, recipe: Recipe) -> None:
        result = self._composed(recipe)
        layers = sorted({module.rpartition(".")[2] for module in result.modules})
        config = AdapterConfig(recipe.base.model, result.rank, float(result.rank), False, tuple(layers))
        with Staging(self.root) as staging:
            matrices = {module: (lora.a, lora.b) for module, lora in result.modules.items()}
            write_adapter(staging.path, config, matrices, recipe.precision)
            _write_record(staging.path, recipe, result)
            for file in (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE):
                _seal(staging.path / file)
            staging.path.chmod(0o755)
            sync_folder(staging.path)
            self._publish(staging.path, recipe.name)

    def _composed(self, recipe: Recipe) -> Composed:
        limits = Limits(max_rank=MAX_RANK)
        members = [
            (weight, read_weights(self._adapters.verify(digest), limits, digest))
            for digest, weight in recipe.members
        ]
        try:
            return composed(members, recipe.base.modules, recipe.server, recipe.truncate_to)
        except UnprocessableRequest as error:
            if "position" not in error.metadata:
                raise
            digest, _ = recipe.members[int(error.metadata["position"])]
            raise refused(
                error.reason, f"adapter {digest}: {error.message}", field="adapters", adapter=digest
            ) from None

    def _publish(self, staged: Path, name: str) -> None:
        target = self.root / name
        if target.exists():
            # Damaged since: out of the way with it, under a name that the sweep removes.
            target.rename(self.root / f"{STAGING_PREFIX}damaged-{time.time_ns()}")
        try:
            staged.rename(target)
        except OSError as error:
            # Where locks do not reach, as on some network file systems, somebody else may have been first.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(self.root)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
        with (self.root / LOCKS / name).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _write_record(folder: Path, recipe: Recipe, result: Composed) -> None:
    record = {
        **recipe.to_json(),
        "recipe_digest": recipe.digest,
        "content_digest": combine_digest(*(_hash(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE))),
        "rank": result.rank,
        "error": result.error,
        "errors": dict(result.errors),
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_record(folder: Path) -> dict[str, Any]:
    with open_regular(folder / RECORD_FILE) as file:
        return parse_object(file.read(_MAX_RECORD_BYTES))


def _composite(name: str, folder: Path, record: dict[str, Any]) -> Composite:
    return Composite(
        name=name,
        folder=folder,
        digest=str(record["content_digest"]),
        recipe=str(record["recipe_digest"]),
        members=tuple((str(each["digest"]), float(each["weight"])) for each in record["members"]),
        rank=int(record["rank"]),
        error=float(record["error"]),
        errors={str(module): float(error) for module, error in record["errors"].items()},
    )


def _corrupt(name: str) -> UnprocessableRequest:
    return refused(
        "COMPOSITE_CORRUPT", f"composite {name} has changed in the store: compose it again", composite=name
    )


def _seal(path: Path) -> None:
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _hash(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
