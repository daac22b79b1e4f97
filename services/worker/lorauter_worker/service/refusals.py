"""Which adapters are at fault, and when that is the adapter's fault and not the backend's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import text
from sqlmodel import Session

from lorauter_worker.domain.arms import Arm
from lorauter_worker.ports import UNLIKELY, Answer, Refused
from lorauter_worker.service.task_table import TaskTable

LEAST_EXAMPLES = 2
"""Examples on which an adapter must answer as the base does before it counts as without effect: as many as
strategies measure every adapter of a large pool on."""

SAME = 1e-5
"""Relative difference up to which two likelihoods are the same: float32 rounds by the shape of a batch."""

UNSURE = 1e-3
"""Least log-likelihood, negated, at which an example tells anything: where the base is certain all agree."""

_ANY_MEASURED = text(
    "SELECT EXISTS (SELECT 1 FROM measurement m JOIN task t ON t.tenant = m.tenant AND t.id = m.task_id "
    "WHERE m.tenant = :tenant AND t.pool = :pool AND m.digest <> '')"
)


@dataclass(slots=True)
class Refusals:
    """What a slice found out about adapters that the backend refuses."""

    aside: dict[Arm, Refused] = field(default_factory=dict)
    some_adapter_answered: bool = False
    """So that the backend is not to blame for those that do not."""

    def sort_out(
        self, table: TaskTable, cells: Sequence[tuple[int, int]], results: Sequence[Answer | Refused]
    ) -> dict[tuple[int, int], Answer]:
        """Puts refused arms aside; returns the answers of the others by cell."""
        refused = {
            table.arms[row]: result
            for (row, _), result in zip(cells, results, strict=True)
            if isinstance(result, Refused)
        }
        self.aside.update(refused)
        answers = {
            cell: result
            for cell, result in zip(cells, results, strict=True)
            if isinstance(result, Answer) and table.arms[cell[0]] not in refused
        }
        self.some_adapter_answered |= any(not table.arms[row].is_base for row, _ in answers)
        return answers


def without_effect(table: TaskTable) -> list[int]:
    """Returns the rows of adapters that change nothing, though another adapter does.

    An adapter changes nothing if the target is as likely as by the base on every example that both were
    measured on, at least LEAST_EXAMPLES of them. Fewer say too little; nor does this say anything where the
    backend tells no likelihoods.
    """
    likelihoods = table.table.likelihoods
    base = likelihoods[table.table.base]
    tells = np.isfinite(likelihoods) & (base > UNLIKELY) & (base < -UNSURE)
    with np.errstate(invalid="ignore"):
        differs = tells & (np.abs(likelihoods - base) > SAME * np.abs(base))
    if not differs.any():
        return []
    idle = table.table.adapters & (tells.sum(axis=1) >= LEAST_EXAMPLES) & ~differs.any(axis=1)
    return [int(row) for row in np.flatnonzero(idle)]


def is_any_adapter_measured(session: Session, tenant: str, pool_id: str) -> bool:
    """Returns whether the pool's backends ever answered with an adapter."""
    values = {"tenant": tenant, "pool": pool_id}
    return bool(session.connection().execute(_ANY_MEASURED, values).scalar())
