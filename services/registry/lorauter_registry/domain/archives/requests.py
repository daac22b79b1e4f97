"""What the registry is asked about archives, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from lorauter_registry.domain.fields import Value, WriteRequest


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds on an archive's rows altogether, and on each validation set, in bytes."""

    max_rows_bytes: int = 8 * 1024**3
    max_set_bytes: int = 64 * 1024**2


class ExportRegistry(Value):
    """Asks for an archive."""

    without_weights: bool = False
    without_embeddings: bool = False
    with_keys: bool = False


class ImportRegistry(WriteRequest):
    """Imports an archive, which travels beside it."""

    with_keys: bool = False


class RegistryContents(Value):
    """What an archive holds: rows by table, adapters with their files, the registry's generation."""

    rows: dict[str, int]
    adapters: int
    generation: str
