"""What an operation of kind matching asks for, as stored in operation.request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from lorauter_worker.domain.arms import Arm


@dataclass(frozen=True, slots=True)
class MatchingRequest:
    """Empty collections mean all, an empty strategy the setting's, None no budget."""

    task_ids: tuple[str, ...] = ()
    adapter_ids: tuple[str, ...] = ()
    remeasure: bool = False
    """Whether what was measured before the operation began does not count."""
    strategy: str = ""
    max_evaluations: int | None = None
    max_seconds: float | None = None
    """Since the operation was created."""
    priority: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Reads what to_json() or the registry wrote; absent fields take their defaults."""
        return cls(
            task_ids=tuple(value.get("task_ids") or ()),
            adapter_ids=tuple(value.get("adapter_ids") or ()),
            remeasure=bool(value.get("remeasure")),
            strategy=value.get("strategy") or "",
            max_evaluations=value.get("max_evaluations"),
            max_seconds=value.get("max_seconds"),
            priority=value.get("priority") or 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what operation.request holds."""
        return {
            **asdict(self),
            "task_ids": list(self.task_ids),
            "adapter_ids": list(self.adapter_ids),
        }

    def asks_for_task(self, task_id: str) -> bool:
        """Returns whether a task is within the request."""
        return not self.task_ids or task_id in self.task_ids

    def asks_for_arm(self, arm: Arm) -> bool:
        """Returns whether an arm is within the request, as the base always is."""
        return arm.is_base or not self.adapter_ids or arm.adapter_id in self.adapter_ids
