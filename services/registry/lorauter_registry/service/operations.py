"""Operations: long work that the worker carries out."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from sqlmodel import Session, col, select

from lorauter.errors import FailedPrecondition
from lorauter.matching import strategy
from lorauter.store import Write, tables
from lorauter_registry.domain.answers import OperationList
from lorauter_registry.domain.operation_requests import CancelOperation, ListOperations, StartMatching
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Operation, OperationState
from lorauter_registry.service.base import Part, missing
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import operation_of


class Operations(Part):
    """Operations: long work that the worker carries out."""

    def start_matching(self, request: StartMatching) -> Operation:
        """Starts measuring adapters on tasks; the worker's own strategy where none is named.

        Raises NotFound (POOL_NOT_FOUND, TASK_NOT_FOUND, ADAPTER_NOT_FOUND), InvalidArgument
        (UNKNOWN_STRATEGY) or FailedPrecondition (NO_ADAPTERS, NO_ACTIVE_VERSION,
        TASK_WITHOUT_EXAMPLES, NO_EVALUATOR); then nothing begins.
        """
        if request.strategy:
            strategy(request.strategy)
        duration = request.max_duration

        def change(tx: Write) -> Operation:
            self.existing(tx.session, tables.Pool, "pool", request.pool)
            self._check_adapters(tx.session, request)
            self._check_tasks(tx.session, request)
            self._check_backends(tx.session, request)
            row = tables.Operation(
                tenant=self.tenant,
                id=str(uuid.uuid4()),
                kind="matching",
                pool=request.pool,
                request={
                    "task_ids": list(request.task_ids),
                    "adapter_ids": list(request.adapter_ids),
                    "remeasure": request.remeasure,
                    "strategy": request.strategy,
                    "max_evaluations": request.max_evaluations,
                    "max_seconds": None if duration is None else duration.total_seconds(),
                    "priority": request.priority,
                },
                create_time=tx.now,
                update_time=tx.now,
            )
            tx.session.add(row)
            tx.owe("index", row.pool)
            tx.owe("matching", row.id, request.priority)
            return operation_of(row)

        return self.changing(request, Operation, change)

    def get_operation(self, request: GetById) -> Operation:
        """Returns an operation; raises NotFound (OPERATION_NOT_FOUND)."""
        with self.reading() as session:
            return operation_of(self.existing(session, tables.Operation, "operation", request.id))

    def list_operations(self, request: ListOperations) -> OperationList:
        """Lists operations, newest first; raises NotFound (POOL_NOT_FOUND)."""
        operation = tables.Operation
        statement = select(operation).where(operation.tenant == self.tenant)
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(operation.pool == request.pool)
            operations, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(operation.create_time), col(operation.id)],
                lambda rows: [operation_of(row) for row in rows],
                newest_first=True,
            )
        return OperationList(operations=operations, next_page_token=token)

    def cancel_operation(self, request: CancelOperation) -> Operation:
        """Asks an operation to stop, and returns it; one that has ended stays as it is.

        Raises NotFound (OPERATION_NOT_FOUND).
        """

        def change(tx: Write) -> Operation:
            row = self.existing(tx.session, tables.Operation, "operation", request.id, lock=True)
            if OperationState(row.state).is_final or row.cancel_requested:
                tx.withdraw()
                return operation_of(row)
            row.cancel_requested = True
            row.update_time = tx.now
            tx.owe("index", row.pool)
            tx.owe("matching", row.id, row.request.get("priority", 0))
            return operation_of(row)

        return self.changing(request, Operation, change)

    def _check_adapters(self, session: Session, request: StartMatching) -> None:
        adapter, version = tables.Adapter, tables.AdapterVersion
        of_pool = (adapter.tenant == self.tenant, adapter.pool == request.pool)
        known = select(adapter.id).where(*of_pool)
        _check_known("adapter", request.adapter_ids, session.exec(known))
        active = set(session.exec(known.join(version).where(version.state == "ACTIVE")))
        if not active:
            raise FailedPrecondition(
                "NO_ADAPTERS",
                f"pool {request.pool!r} has no adapter with an active version: register one first",
                pool=request.pool,
            )
        idle = sorted(set(request.adapter_ids) - active)
        if idle:
            raise FailedPrecondition(
                "NO_ACTIVE_VERSION",
                f"adapter {idle[0]!r} has no active version: register a new one, or leave it out",
                adapter=idle[0],
            )

    def _check_tasks(self, session: Session, request: StartMatching) -> None:
        task = tables.Task
        statement = select(task.id, task.version).where(task.tenant == self.tenant, task.pool == request.pool)
        versions: dict[str, int] = dict(session.exec(statement).all())
        _check_known("task", request.task_ids, versions)
        empty = sorted(task_id for task_id in request.task_ids if versions[task_id] == 0)
        if empty:
            raise FailedPrecondition(
                "TASK_WITHOUT_EXAMPLES",
                f"task {empty[0]!r} has no validation set: put one first, or leave the task out",
                task=empty[0],
            )
        if not any(versions.values()):
            raise FailedPrecondition(
                "TASK_WITHOUT_EXAMPLES",
                f"pool {request.pool!r} has no task with a validation set: put one first",
                pool=request.pool,
            )

    def _check_backends(self, session: Session, request: StartMatching) -> None:
        backend = tables.Backend
        active = select(backend.id).where(
            backend.tenant == self.tenant, backend.pool == request.pool, backend.state == "ACTIVE"
        )
        if session.exec(active.limit(1)).first() is None:
            raise FailedPrecondition(
                "NO_EVALUATOR",
                f"pool {request.pool!r} has no active backend to measure adapters with: register one first",
                pool=request.pool,
            )


def _check_known(noun: str, ids: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(ids).difference(known))
    if unknown:
        raise missing(noun, unknown[0])
