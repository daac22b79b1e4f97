"""What is measured on a task: versions of adapters, the base, and weighted sets of adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorauter.identifiers import BASE


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """An adapter's version, or the base (version 0, no digest).

    A weighted set has ``members``, adapters with their weights, and its name in place of a digest.
    """

    adapter_id: str
    version: int
    digest: str = field(compare=False)
    members: tuple[tuple[Arm, float], ...] = field(default=(), compare=False)

    @property
    def is_base(self) -> bool:
        """Whether this is the bare model."""
        return self.adapter_id == BASE


BASE_ARM = Arm(BASE, 0, "")
