"""Transactions of lorauter.store on real PostgreSQL: generations, outbox, consistent reads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import Engine
from sqlmodel import col, func, select

from lorauter.errors import Unavailable
from lorauter.store import create_engine, ping, read, tables, write


@pytest.fixture
def engine(postgres_url: str):
    engine = create_engine(postgres_url, pool_size=20)
    yield engine
    engine.dispose()


def test_generations_count_up_without_gaps_when_writes_fail_or_withdraw(engine: Engine) -> None:
    seen = []
    for number in range(6):
        try:
            with write(engine, "default") as tx:
                if number == 2:
                    raise ZeroDivisionError
                if number == 4:
                    tx.withdraw()
                    continue
                seen.append(tx.generation)
        except ZeroDivisionError:
            continue
    assert seen == [1, 2, 3, 4]


def test_generations_are_unique_and_match_the_outbox_when_20_threads_write(engine: Engine) -> None:
    barrier = threading.Barrier(20)

    def work(worker: int) -> list[int]:
        barrier.wait(20)
        mine = []
        for step in range(10):
            with write(engine, "default") as tx:
                if (worker + step) % 7 == 0:
                    tx.withdraw()
                else:
                    tx.owe("index", f"pool-{worker}")
                    mine.append(tx.generation)
        return mine

    with ThreadPoolExecutor(20) as threads:
        generations = [one for mine in threads.map(work, range(20)) for one in mine]
    assert sorted(generations) == list(range(1, len(generations) + 1))
    with read(engine) as session:
        rows = session.exec(select(tables.Outbox).order_by(col(tables.Outbox.id))).all()
        counter = session.get(tables.Generation, "default")
    assert [row.generation for row in rows] == sorted(generations)
    assert counter is not None
    assert counter.value == len(generations)
    times = [row.create_time for row in rows]
    assert times == sorted(times)


def test_tenants_do_not_wait_for_each_other(engine: Engine) -> None:
    with write(engine, "one") as first, write(engine, "two") as second:
        assert (first.generation, second.generation) == (1, 1)


def test_reads_see_one_moment_when_a_write_commits_meanwhile(engine: Engine) -> None:
    count = select(func.count()).select_from(tables.Outbox)
    with read(engine) as session:
        assert session.exec(count).one() == 0
        with write(engine, "default") as tx:
            tx.owe("index", "pool")
        assert session.exec(count).one() == 0
    with read(engine) as session:
        assert session.exec(count).one() == 1


def test_error_is_unavailable_when_postgres_is_away() -> None:
    engine = create_engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Unavailable), write(engine, "default"):
        pass
    with pytest.raises(Unavailable):
        ping(engine)


def drop_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_calls_go_on_when_postgres_dropped_idle_connections(engine: Engine, postgres_url: str) -> None:
    ping(engine)
    drop_connections(postgres_url)
    ping(engine)


def test_nothing_is_stored_when_the_connection_breaks_in_a_write(engine: Engine, postgres_url: str) -> None:
    def broken_write() -> None:
        with write(engine, "default") as tx:
            tx.owe("index", "pool")
            tx.session.flush()
            drop_connections(postgres_url)

    with pytest.raises(Unavailable) as caught:
        broken_write()
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    with read(engine) as session:
        assert session.exec(select(func.count()).select_from(tables.Outbox)).one() == 0
        assert session.get(tables.Generation, "default") is None
