"""How far an operation is, summed over its parts, and its end."""

# ruff: noqa: S608 - only constants of this file are put together

from __future__ import annotations

from sqlalchemy import Connection, text

from lorauter.store.tables import Operation
from lorauter_worker.service import outbox
from lorauter_worker.service.state import lock_generation

_TOUCHED = "update_time = CASE WHEN cancel_requested THEN update_time ELSE clock_timestamp() END"
"""Leaves when a cancelled operation was asked to stop: see automatching."""

_OF_OPERATION = "tenant = :tenant AND operation_id = :operation"
_UNDER_WAY = "tenant = :tenant AND id = :operation AND state IN ('PENDING', 'RUNNING')"

_PROGRESS = text(f"""
WITH parts AS (
    SELECT COALESCE(sum(done), 0) AS done, COALESCE(sum("left"), 0) AS "left", count(*) AS tasks,
           count(*) FILTER (WHERE state = 'DONE') AS done_tasks
    FROM operation_part WHERE {_OF_OPERATION}),
rounds AS (
    SELECT round, sum(CAST(arms AS bigint)) AS arms
    FROM operation_part, jsonb_array_elements_text(alive) WITH ORDINALITY AS each (arms, round)
    WHERE {_OF_OPERATION} GROUP BY round),
alive AS (SELECT COALESCE(jsonb_agg(arms ORDER BY round), '[]'::jsonb) AS arms FROM rounds)
UPDATE operation SET
    state = 'RUNNING', done = parts.done, total = parts.done + parts.left, message = :message, {_TOUCHED},
    progress = progress || jsonb_build_object(
        'task_count', parts.tasks, 'done_task_count', parts.done_tasks, 'alive', alive.arms)
FROM parts, alive WHERE {_UNDER_WAY}
""")
_BEGIN = text(
    "UPDATE operation SET progress = jsonb_build_object('strategy', CAST(:strategy AS text), "
    f"'quarantined_count', 0) || progress WHERE {_UNDER_WAY}"
)
_QUARANTINED = text(
    "UPDATE operation SET progress = progress || jsonb_build_object('quarantined_count', "
    "COALESCE(CAST(progress ->> 'quarantined_count' AS int), 0) + 1) "
    "WHERE tenant = :tenant AND id = :operation"
)
_END = text(
    "UPDATE operation SET state = :state, message = :message, error = :error, "
    "total = CASE WHEN :is_whole THEN done ELSE total END, "
    f"{_TOUCHED}, end_time = clock_timestamp() WHERE {_UNDER_WAY}"
)
_DROP = text(
    "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE tenant = :tenant AND topic = 'matching' "
    "AND (key = :operation OR starts_with(key, :operation || '/')) FOR UPDATE SKIP LOCKED)"
)
_LEFT_OVER = text(
    "UPDATE task SET state = 'EMBEDDED', update_time = clock_timestamp() "
    "WHERE tenant = :tenant AND state = 'MATCHING' "
    f"AND id IN (SELECT task_id FROM operation_part WHERE {_OF_OPERATION})"
)


def begin(connection: Connection, tenant: str, operation_id: str, strategy: str) -> None:
    """Notes the strategy that an operation works by, once for all its parts."""
    connection.execute(_BEGIN, {"tenant": tenant, "operation": operation_id, "strategy": strategy})


def sum_up(connection: Connection, tenant: str, operation_id: str, message: str) -> None:
    """Writes how far the operation is. Its row must be locked, so that no other part's sum is lost."""
    connection.execute(_PROGRESS, {"tenant": tenant, "operation": operation_id, "message": message})


def count_quarantined(connection: Connection, tenant: str, operation_id: str) -> None:
    """Counts one more adapter that the operation quarantined."""
    connection.execute(_QUARANTINED, {"tenant": tenant, "operation": operation_id})


def end(connection: Connection, operation: Operation, state: str, message: str, error: str = "") -> None:
    """Ends an operation with all its work; a success has the pool looked at for what came since.

    A part that somebody is writing this moment keeps its row, and finds the operation ended.
    """
    lock_generation(connection, operation.tenant)
    values = {"tenant": operation.tenant, "operation": operation.id}
    ended = {"state": state, "is_whole": state == "SUCCEEDED", "message": message, "error": error}
    connection.execute(_END, {**values, **ended})
    connection.execute(_LEFT_OVER, values)
    connection.execute(_DROP, values)
    if state == "SUCCEEDED":
        outbox.owe(connection, operation.tenant, "index", [operation.pool])
