"""Operations: long work that the worker carries out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlmodel import Session, col, select

from lorauter.errors import InvalidArgument
from lorauter.store import Write, tables
from lorauter_registry.domain.adapter_requests import CancelOperation, ListOperations, StartMatching
from lorauter_registry.domain.answers import OperationList
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Operation, OperationState
from lorauter_registry.service.base import Part, missing
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import operation_of

MATCHING_STRATEGIES = ("exhaustive",)
"""The names that a matching's strategy may have; the first is the default."""


class Operations(Part):
    """Operations: long work that the worker carries out."""

    def start_matching(self, request: StartMatching) -> Operation:
        """Starts measuring adapters on tasks.

        Raises NotFound (POOL_NOT_FOUND, TASK_NOT_FOUND, ADAPTER_NOT_FOUND) or InvalidArgument
        (UNKNOWN_STRATEGY).
        """
        strategy = request.strategy or MATCHING_STRATEGIES[0]
        if strategy not in MATCHING_STRATEGIES:
            raise InvalidArgument(
                "UNKNOWN_STRATEGY",
                f"strategy {strategy!r} is not known: use one of {', '.join(MATCHING_STRATEGIES)}",
                field="strategy",
            )

        def change(tx: Write) -> Operation:
            self.existing(tx.session, tables.Pool, "pool", request.pool)
            self._check_ids(tx.session, tables.Task, "task", request.pool, request.task_ids)
            self._check_ids(tx.session, tables.Adapter, "adapter", request.pool, request.adapter_ids)
            row = tables.Operation(
                tenant=self.tenant,
                id=str(uuid.uuid4()),
                kind="matching",
                pool=request.pool,
                request={
                    "task_ids": list(request.task_ids),
                    "adapter_ids": list(request.adapter_ids),
                    "remeasure": request.remeasure,
                    "strategy": strategy,
                },
                create_time=tx.now,
                update_time=tx.now,
            )
            tx.session.add(row)
            tx.owe("index", row.pool)
            tx.owe("matching", row.id)
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
            tx.owe("matching", row.id)
            return operation_of(row)

        return self.changing(request, Operation, change)

    def _check_ids(
        self,
        session: Session,
        table: type[tables.Task] | type[tables.Adapter],
        noun: str,
        pool: str,
        ids: Sequence[str],
    ) -> None:
        if not ids:
            return
        known = select(table.id).where(
            table.tenant == self.tenant, table.pool == pool, col(table.id).in_(ids)
        )
        unknown = sorted(set(ids) - set(session.exec(known).all()))
        if unknown:
            raise missing(noun, unknown[0])
