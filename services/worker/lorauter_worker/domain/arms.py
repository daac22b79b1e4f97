"""What is measured on a task: versions of adapters, and the base."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorauter.identifiers import BASE


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """An adapter's version, or the base (version 0, no digest)."""

    adapter_id: str
    version: int
    digest: str = field(compare=False)

    @property
    def is_base(self) -> bool:
        """Whether this is the bare model."""
        return self.adapter_id == BASE


BASE_ARM = Arm(BASE, 0, "")
