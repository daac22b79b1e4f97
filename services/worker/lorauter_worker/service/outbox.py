"""Claims work from the outbox, and lets only the newest claim finish it.

All times are the database's. A claim pushes the row's next try back before anything is done, so that
work that kills its worker cannot spin.
"""

# ruff: noqa: S608 - only constants of this file are put together

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from lorauter import tracing
from lorauter.errors import LorauterError
from lorauter.failpoints import reach
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Topic

_log = get_logger(__name__)

FIRST_DELAY_SECONDS = 1.0
"""Pause after the first failure; it doubles with every one in a row."""

LONGEST_DELAY_SECONDS: Mapping[Topic, float] = {"index": 15.0, "matching": 300.0}
"""Longest pause between two tries: an index that comes back must not stay old for minutes."""

LONGEST_LEASE_SECONDS = 900
"""No setting makes a lease as long: a longer one was written before the database's clock went back."""

# Likewise no pause is twice the longest. Work would else wait for as long as the clock went back.
_DUE = (
    "(available_at <= clock_timestamp() "
    "OR available_at > clock_timestamp() + make_interval(secs => 2 * CAST(:longest AS float8)))"
)
_HELD_UNTIL = f"clock_timestamp() AND clock_timestamp() + interval '{LONGEST_LEASE_SECONDS} s'"
_FREE = f"{_DUE} AND (lease_until IS NULL OR lease_until NOT BETWEEN {_HELD_UNTIL})"

# One claim at a time: two at once would take different rows of one key, or none where there is work.
_CLAIMING = text("SELECT pg_advisory_xact_lock(hashtext('lorauter.outbox.' || :topic))")

# A tenant's index work is one projection, and a matching's key one job: whoever holds a row holds all of
# them. Parts of two matchings on one task take turns, so that neither measures what the other just does.
# Planning comes before measuring.
_CLAIM = text(f"""
WITH held AS MATERIALIZED (
    SELECT tenant, key, split_part(key, '/', 2) AS task FROM outbox
    WHERE topic = :topic AND lease_until BETWEEN {_HELD_UNTIL}),
first AS (
    SELECT tenant, key FROM outbox free
    WHERE topic = :topic AND {_FREE}
      AND NOT EXISTS (
        SELECT 1 FROM held
        WHERE held.tenant = free.tenant AND (
            :topic = 'index' OR held.key = free.key
            OR (held.task <> '' AND held.task = split_part(free.key, '/', 2))))
    ORDER BY strpos(key, '/') > 0, priority DESC, id LIMIT 1),
chosen AS (
    SELECT o.id FROM outbox o JOIN first f ON o.tenant = f.tenant AND (:topic = 'index' OR o.key = f.key)
    WHERE o.topic = :topic AND {_FREE}
    ORDER BY o.id FOR UPDATE OF o SKIP LOCKED)
UPDATE outbox SET
    lease_owner = :owner,
    lease_until = clock_timestamp() + make_interval(secs => :lease),
    fence = fence + 1,
    attempts = attempts + 1,
    available_at = clock_timestamp() + make_interval(
        secs => least(:longest, :first * power(2, least(attempts, 20))) * (0.75 + random() / 2))
FROM chosen WHERE outbox.id = chosen.id
RETURNING outbox.id, outbox.tenant, outbox.key, outbox.fence, outbox.attempts, outbox.traceparent
""")

_MINE = "(id, fence) IN (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])))"
_EXTEND = text(
    f"UPDATE outbox SET lease_until = clock_timestamp() + make_interval(secs => :lease) WHERE {_MINE}"
)
_RELEASE = text(f"UPDATE outbox SET lease_until = NULL, lease_owner = '', last_error = :error WHERE {_MINE}")
_CONTINUE = text(
    "UPDATE outbox SET lease_until = NULL, lease_owner = '', last_error = '', attempts = 0, "
    f"available_at = clock_timestamp() + make_interval(secs => :seconds) WHERE {_MINE}"
)
_HASTEN = text(
    "UPDATE outbox SET available_at = clock_timestamp() WHERE topic = :topic "
    "AND available_at > clock_timestamp() AND (lease_until IS NULL OR lease_until <= clock_timestamp())"
)
_FINISH = text(f"DELETE FROM outbox WHERE {_MINE}")
_OWE = text(
    "INSERT INTO outbox "
    "(tenant, topic, key, generation, priority, attempts, fence, lease_owner, last_error, traceparent) "
    "SELECT :tenant, :topic, key, 0, :priority, 0, 0, '', '', :traceparent "
    "FROM unnest(CAST(:keys AS text[])) AS key"
)
_FULFIL = text(
    "DELETE FROM outbox WHERE tenant = :tenant AND topic = 'index' AND generation <= :generation "
    f"AND ({_MINE} OR lease_until IS NULL OR lease_until <= clock_timestamp())"
)
_HELD = text(f"SELECT id FROM outbox WHERE {_MINE} FOR UPDATE")
_OWED = text("SELECT EXISTS (SELECT 1 FROM outbox WHERE tenant = :tenant AND topic = 'index')")
_BACKLOG = text(
    "SELECT count(*), COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - min(create_time)), 0), "
    f"count(*) FILTER (WHERE {_FREE}) FROM outbox WHERE topic = :topic"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Outbox rows held under a lease: all free ones of a tenant (index) or of a key (matching).

    ``fences`` are the claim's numbers by row; ``attempts`` counts tries in a row, this one included.
    ``traces`` are the places that the rows were written at, the oldest first.
    """

    tenant: str
    topic: Topic
    key: str
    fences: Mapping[int, int]
    attempts: int
    traces: tuple[str, ...] = ()

    def parameters(self) -> dict[str, object]:
        """Returns what names the rows in a statement."""
        return {"ids": list(self.fences), "fences": list(self.fences.values())}


@dataclass(frozen=True, slots=True)
class Backlog:
    """Rows of a topic; the age of the oldest in seconds; how many of them nobody holds and are due."""

    depth: int
    age_seconds: float
    due: int


def claim(engine: Engine, topic: Topic, owner: str, lease_seconds: float) -> Claim | None:
    """Claims the work of highest priority that waits longest; None if there is none that nobody holds."""
    values = {
        "topic": topic,
        "owner": owner,
        "lease": lease_seconds,
        "first": FIRST_DELAY_SECONDS,
        "longest": LONGEST_DELAY_SECONDS[topic],
    }
    with engine.begin() as connection:
        connection.execute(_CLAIMING, {"topic": topic})
        rows = connection.execute(_CLAIM, values).all()
    if not rows:
        return None
    reach("claim")
    return Claim(
        tenant=rows[0].tenant,
        topic=topic,
        key=rows[0].key,
        fences={row.id: row.fence for row in rows},
        attempts=max(row.attempts for row in rows),
        traces=tuple(row.traceparent for row in sorted(rows, key=lambda row: row.id)),
    )


def extend(engine: Engine, held: Claim, lease_seconds: float) -> bool:
    """Renews the lease; returns False if no row of it is left to this claim."""
    with engine.begin() as connection:
        return connection.execute(_EXTEND, {**held.parameters(), "lease": lease_seconds}).rowcount > 0


def release(engine: Engine, held: Claim, error: str) -> None:
    """Frees the rows after a failure, to be tried again when their delay is over."""
    with engine.begin() as connection:
        connection.execute(_RELEASE, {**held.parameters(), "error": error[:2000]})


def fail(engine: Engine, held: Claim, error: Exception) -> None:
    """Logs a failure and frees the rows. An expected error is a warning, any other a defect."""
    telemetry.FAILURES.labels(topic=held.topic).inc()
    tracing.current().fail(error.reason if isinstance(error, LorauterError) else type(error).__name__)
    if isinstance(error, LorauterError):
        _log.warning("worker.work.failed", topic=held.topic, reason=error.reason, attempts=held.attempts)
        release(engine, held, f"{error.reason}: {error.message}")
        return
    _log.error("worker.work.failed", topic=held.topic, attempts=held.attempts, exc_info=error)
    release(engine, held, f"{type(error).__name__}: {error}")


def carry_on(engine: Engine, held: Claim, seconds: float = 0.0) -> None:
    """Frees the rows after some progress: they are due in ``seconds``, and their failures forgotten."""
    with engine.begin() as connection:
        connection.execute(_CONTINUE, {**held.parameters(), "seconds": seconds})


def hasten(engine: Engine, topic: Topic) -> None:
    """Makes all work that waits after a failure due at once: what it failed for is there again."""
    with engine.begin() as connection:
        connection.execute(_HASTEN, {"topic": topic})


def fulfil(connection: Connection, held: Claim, generation: int) -> int:
    """Deletes index work up to a published generation, this claim's and what nobody holds."""
    values = {**held.parameters(), "tenant": held.tenant, "generation": generation}
    return connection.execute(_FULFIL, values).rowcount


def owe(connection: Connection, tenant: str, topic: Topic, keys: Sequence[str], priority: int = 0) -> None:
    """Leaves work of no generation of its own, due at once: see tables.Outbox."""
    values = {"tenant": tenant, "topic": topic, "keys": list(keys), "priority": priority}
    connection.execute(_OWE, {**values, "traceparent": tracing.traceparent()})


def finish(connection: Connection, held: Claim) -> None:
    """Deletes the claim's rows."""
    connection.execute(_FINISH, held.parameters())


def still_holds(connection: Connection, held: Claim) -> bool:
    """Returns whether nobody claimed the rows since, and locks them until the transaction ends."""
    return bool(connection.execute(_HELD, held.parameters()).all())


def is_owed(engine: Engine, tenant: str) -> bool:
    """Returns whether a tenant has index work left, held or not."""
    with engine.connect() as connection:
        return bool(connection.execute(_OWED, {"tenant": tenant}).scalar_one())


def backlog(engine: Engine, topic: Topic) -> Backlog:
    """Returns how much work there is."""
    with engine.connect() as connection:
        values = {"topic": topic, "longest": LONGEST_DELAY_SECONDS[topic]}
        depth, age, due = connection.execute(_BACKLOG, values).one()
    return Backlog(int(depth), float(age), int(due))
