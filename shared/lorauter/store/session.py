"""Transactions on PostgreSQL: consistent reads, and writes that each make one generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import sqlalchemy
from sqlalchemy import Engine, exc, text
from sqlalchemy.engine import make_url
from sqlmodel import Session

from lorauter import tracing
from lorauter.errors import Unavailable
from lorauter.failpoints import reach
from lorauter.store.tables import Outbox

CONNECT_TIMEOUT_SECONDS = 5
"""How long a new connection may take before the database counts as away."""

STATEMENT_TIMEOUT_SECONDS = 60
"""How long one statement may take; a bulk insert of 100,000 examples takes about a second."""

IDLE_TIMEOUT_SECONDS = 60
"""How long a transaction may lie idle, so that a frozen process frees the generation's lock."""

_NEXT_GENERATION = text(
    "INSERT INTO generation AS g (tenant, value) VALUES (:tenant, 1) "
    "ON CONFLICT (tenant) DO UPDATE SET value = g.value + 1 RETURNING value, clock_timestamp()"
)
_GIVE_BACK = text("UPDATE generation SET value = value - 1 WHERE tenant = :tenant")


def create_engine(url: str, pool_size: int = 5) -> Engine:
    """Returns an engine for ``postgresql://…``. It connects lazily, and must not outlive a fork.

    Broken connections are noticed and replaced. ``pool_size`` bounds the idle connections; twice as
    many may be open at once.
    """
    options = (
        f"-c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s "
        f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_SECONDS}s"
    )
    return sqlalchemy.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "options": options},
    )


@dataclass(slots=True)
class Write:
    """A transaction that holds the tenant's next generation, and with it the tenant's write lock.

    Rows that it changes are stamped with ``generation`` and ``now``. Until it ends every other write of
    the tenant waits, so what it reads cannot change under it.
    """

    session: Session
    tenant: str
    generation: int
    now: datetime
    """The database's clock, later than that of every earlier generation."""
    owed: list[Literal["index", "matching"]] = field(default_factory=list)
    """Topics that owe() was called with, in order: what to wake after the commit."""

    def owe(self, topic: Literal["index", "matching"], key: str, priority: int = 0) -> None:
        """Leaves work for the worker in this transaction: see Outbox."""
        row = Outbox(tenant=self.tenant, topic=topic, key=key, generation=self.generation, priority=priority)
        row.traceparent = tracing.traceparent()
        self.session.add(row)
        self.owed.append(topic)

    def withdraw(self) -> None:
        """Gives the generation back, for a write that found nothing to change; commits what else it did.

        Nobody has seen the generation, because its row is locked until the commit.
        """
        self.session.connection().execute(_GIVE_BACK, {"tenant": self.tenant})
        self.generation -= 1


@contextmanager
def write(engine: Engine, tenant: str) -> Iterator[Write]:
    """Runs one accepted change: commits at the end, rolls back on any error.

    The first statement takes the next generation and locks its row, which creates the row if it is
    missing; so generations commit in their order, without gaps. Raises Unavailable
    (DATABASE_UNAVAILABLE) when PostgreSQL is away, which may also happen at the commit: then the
    caller cannot know the outcome, and repeats with the same request_id.
    """
    with _transaction() as span, translated_errors(), Session(engine, expire_on_commit=False) as session:
        generation, now = session.connection().execute(_NEXT_GENERATION, {"tenant": tenant}).one()
        change = Write(session, tenant, generation, now)
        yield change
        span.set({"lorauter.generation": change.generation})
        reach("commit")
        session.commit()
        reach("committed")


def _transaction() -> tracing.Span:
    return tracing.span("transaction", "client", {"db.system.name": "postgresql"})


@contextmanager
def read(engine: Engine) -> Iterator[Session]:
    """Runs reads that all see the same moment (REPEATABLE READ, read only); waits for no writer.

    Raises Unavailable (DATABASE_UNAVAILABLE) when PostgreSQL is away.
    """
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with translated_errors(), Session(snapshot, expire_on_commit=False) as session:
        yield session


def ping(engine: Engine) -> None:
    """Returns if PostgreSQL answers, else raises Unavailable (DATABASE_UNAVAILABLE)."""
    with translated_errors(), engine.connect() as connection:
        connection.execute(text("SELECT 1"))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns the driver's errors for a database that is away into Unavailable (DATABASE_UNAVAILABLE)."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise _unavailable() from error
    except exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise _unavailable() from error


def _unavailable() -> Unavailable:
    return Unavailable(
        "DATABASE_UNAVAILABLE",
        "PostgreSQL does not answer or is too busy: retry later, a write with the same request_id",
    )
