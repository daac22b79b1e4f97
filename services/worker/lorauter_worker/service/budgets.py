"""What an operation may still measure: asked for before every batch, over all workers at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, text

from lorauter_worker.domain.matching_request import MatchingRequest

_LOCK = text(
    "SELECT state, cancel_requested, request, "
    "EXTRACT(EPOCH FROM clock_timestamp() - create_time) AS seconds FROM operation "
    "WHERE tenant = :tenant AND id = :operation FOR UPDATE"
)
_SPENT = text(
    "SELECT COALESCE(sum(done), 0) AS done, COALESCE(sum(in_flight), 0) AS in_flight FROM operation_part "
    "WHERE tenant = :tenant AND operation_id = :operation"
)
_SEND = text(
    "UPDATE operation_part SET state = 'RUNNING', in_flight = :count, update_time = clock_timestamp() "
    "WHERE tenant = :tenant AND operation_id = :operation AND task_id = :task"
)


class Stop(Enum):
    """Why an operation measures no more."""

    CANCELLED = auto()
    EVALUATIONS = auto()
    SECONDS = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Account:
    """How an operation stands; its row is locked."""

    request: MatchingRequest
    stop: Stop | None
    left: int | None
    """Evaluations that may still be sent; None without a budget."""

    @property
    def why(self) -> str:
        """What ``stop`` means to people; empty without one."""
        if self.stop is Stop.CANCELLED:
            return "cancelled; what was measured is kept"
        if self.stop is Stop.EVALUATIONS:
            return f"its budget of {self.request.max_evaluations} evaluations"
        if self.stop is Stop.SECONDS:
            return f"its budget of {self.request.max_seconds:g} seconds"
        return "it has ended" if self.stop else ""


def lock_account(connection: Connection, tenant: str, operation_id: str) -> Account:
    """Locks the operation and returns how it stands."""
    at = {"tenant": tenant, "operation": operation_id}
    row = connection.execute(_LOCK, at).one_or_none()
    if row is None or row.state not in ("PENDING", "RUNNING"):
        return Account(MatchingRequest(), Stop.ENDED, 0)
    # a statement of its own: it sees what the holder of the lock before wrote
    spent = connection.execute(_SPENT, at).one()
    request = MatchingRequest.from_json(row.request)
    left = None
    if request.max_evaluations is not None:
        left = max(0, request.max_evaluations - int(spent.done) - int(spent.in_flight))
    return Account(request, _stop(row, request, int(spent.done)), left)


def send(connection: Connection, tenant: str, operation_id: str, task_id: str, count: int) -> None:
    """Counts a batch as in flight, in place of what the part had."""
    values = {"tenant": tenant, "operation": operation_id, "task": task_id, "count": count}
    connection.execute(_SEND, values)


def _stop(row: Any, request: MatchingRequest, done: int) -> Stop | None:
    if row.cancel_requested:
        return Stop.CANCELLED
    if request.max_evaluations is not None and done >= request.max_evaluations:
        return Stop.EVALUATIONS
    if request.max_seconds is not None and row.seconds >= request.max_seconds:
        return Stop.SECONDS
    return None
