"""Claims, leases and fences on the outbox, with several connections."""

import threading
import time
import uuid

import pytest
from sqlalchemy import insert, text

from lorauter.store import create_engine
from lorauter.store.tables import Outbox
from lorauter_worker.service import lease, outbox

TENANT = "default"


@pytest.fixture
def engine(postgres_url):
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


def owe(engine, topic="index", key="main", generation=1, tenant=TENANT) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(Outbox).values(
                tenant=tenant,
                topic=topic,
                key=key,
                generation=generation,
                attempts=0,
                fence=0,
                lease_owner="",
                last_error="",
            )
        )


def rows(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT * FROM outbox ORDER BY id")).all()


def pass_time(engine, seconds: float) -> None:
    """Lets the database's clock seem later."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE outbox SET available_at = available_at - make_interval(secs => :s), "
                "lease_until = lease_until - make_interval(secs => :s)"
            ),
            {"s": seconds},
        )


def test_claim_takes_all_rows_of_the_tenant_when_they_are_index_work(engine):
    for pool in ("a", "b", "b"):
        owe(engine, key=pool)
    owe(engine, tenant="other")
    claim = outbox.claim(engine, "index", "me", 10)
    assert (claim.tenant, len(claim.fences), claim.attempts) == (TENANT, 3, 1)
    assert outbox.claim(engine, "index", "you", 10).tenant == "other"
    assert outbox.claim(engine, "index", "you", 10) is None
    assert outbox.claim(engine, "matching", "you", 10) is None


def test_claim_takes_one_operation_when_it_is_matching_work(engine):
    for key in ("x", "y", "x"):
        owe(engine, topic="matching", key=key)
    first = outbox.claim(engine, "matching", "me", 10)
    second = outbox.claim(engine, "matching", "you", 10)
    assert (first.key, len(first.fences)) == ("x", 2)
    assert (second.key, len(second.fences)) == ("y", 1)


def test_new_rows_wait_when_the_tenant_is_held(engine):
    owe(engine)
    held = outbox.claim(engine, "index", "me", 10)
    owe(engine, generation=2)
    assert outbox.claim(engine, "index", "you", 10) is None
    with engine.begin() as connection:
        outbox.fulfil(connection, held, 1)
    claim = outbox.claim(engine, "index", "you", 10)
    assert len(claim.fences) == 1


def test_rows_are_claimed_once_when_many_claim_at_once(engine):
    for number in range(20):
        owe(engine, topic="matching", key=str(number))
    won: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        while (claim := outbox.claim(engine, "matching", uuid.uuid4().hex, 10)) is not None:
            won.extend(claim.fences)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == len(set(won)) == 20


def test_claim_skips_rows_when_another_transaction_locks_them(engine):
    owe(engine)
    with engine.begin() as connection:
        connection.execute(text("SELECT * FROM outbox FOR UPDATE"))
        assert outbox.claim(engine, "index", "me", 10) is None
    assert outbox.claim(engine, "index", "me", 10) is not None


def test_old_claim_finishes_nothing_when_a_newer_one_exists(engine):
    owe(engine)
    zombie = outbox.claim(engine, "index", "zombie", 10)
    pass_time(engine, 11)
    newest = outbox.claim(engine, "index", "heir", 10)
    assert newest.attempts == 2
    with engine.begin() as connection:
        assert outbox.fulfil(connection, zombie, 1) == 0
        outbox.finish(connection, zombie)
        assert not outbox.still_holds(connection, zombie)
        assert outbox.still_holds(connection, newest)
    assert not outbox.extend(engine, zombie, 10)
    outbox.release(engine, zombie, "late")
    assert len(rows(engine)) == 1
    assert rows(engine)[0].lease_owner == "heir"
    with engine.begin() as connection:
        assert outbox.fulfil(connection, newest, 1) == 1
    assert rows(engine) == []


def test_fulfil_leaves_rows_when_they_are_of_a_newer_generation(engine):
    for generation in (1, 2, 3):
        owe(engine, generation=generation)
    claim = outbox.claim(engine, "index", "me", 10)
    with engine.begin() as connection:
        assert outbox.fulfil(connection, claim, 2) == 2
    assert [row.generation for row in rows(engine)] == [3]


def test_fulfil_takes_rows_along_when_nobody_holds_them(engine):
    owe(engine)
    claim = outbox.claim(engine, "index", "me", 10)
    owe(engine, generation=2)
    owe(engine, tenant="other", generation=2)
    with engine.begin() as connection:
        assert outbox.fulfil(connection, claim, 2) == 2
    assert [row.tenant for row in rows(engine)] == ["other"]


def test_failures_wait_longer_each_time_when_released(engine):
    owe(engine)
    delays = []
    for _ in range(4):
        claim = outbox.claim(engine, "index", "me", 10)
        outbox.release(engine, claim, "INDEX_UNAVAILABLE: away")
        row = rows(engine)[0]
        delays.append((row.available_at - row.create_time).total_seconds())
        assert row.last_error == "INDEX_UNAVAILABLE: away"
        assert outbox.claim(engine, "index", "me", 10) is None
        pass_time(engine, delays[-1])
    assert all(0.75 * 2**n - 0.1 <= delay <= 1.25 * 2**n + 1 for n, delay in enumerate(delays))


@pytest.mark.parametrize(("topic", "longest"), [("index", 15), ("matching", 300)])
def test_failures_wait_at_most_so_long_when_there_were_many(engine, topic, longest):
    owe(engine, topic=topic)
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox SET attempts = 10000"))
    outbox.claim(engine, topic, "me", 10)
    row = rows(engine)[0]
    delay = (row.available_at - row.lease_until).total_seconds() + 10
    assert 0.75 * longest - 0.1 <= delay <= 1.25 * longest + 1


def test_work_is_due_at_once_when_it_made_progress(engine):
    owe(engine, topic="matching")
    claim = outbox.claim(engine, "matching", "me", 10)
    outbox.carry_on(engine, claim)
    assert outbox.claim(engine, "matching", "me", 10).attempts == 1


def test_heartbeat_keeps_the_lease_when_work_outlives_it(engine):
    owe(engine)
    claim = outbox.claim(engine, "index", "me", 2)
    with lease.held(engine, claim, 2, 0.1) as held:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert outbox.claim(engine, "index", "you", 2) is None
            held.check()
            time.sleep(0.05)


def test_check_raises_when_the_lease_was_taken_over(engine):
    owe(engine)
    claim = outbox.claim(engine, "index", "me", 10)
    mine = lease.Lease(engine, claim, 10)
    pass_time(engine, 11)
    assert outbox.claim(engine, "index", "you", 10) is not None
    mine.check()
    mine.beat()
    with pytest.raises(lease.LeaseLost):
        mine.check()


def test_backlog_counts_what_is_due_when_some_is_held(engine):
    owe(engine)
    owe(engine, tenant="other")
    outbox.claim(engine, "index", "me", 10)
    backlog = outbox.backlog(engine, "index")
    assert (backlog.depth, backlog.due) == (2, 1)
    assert 0 <= backlog.age_seconds < 60
    assert outbox.is_owed(engine, TENANT)
    assert not outbox.is_owed(engine, "nobody")


@pytest.mark.parametrize("topic", ["index", "matching"])
@pytest.mark.parametrize("fails", [False, True], ids=["held", "waiting"])
def test_work_is_claimed_at_once_when_the_databases_clock_went_back_by_a_day(engine, topic, fails):
    owe(engine, topic=topic)
    first = outbox.claim(engine, topic, "one", 10)
    if fails:
        outbox.release(engine, first, "away")
    pass_time(engine, -86_400)
    assert outbox.backlog(engine, topic).due == 1
    second = outbox.claim(engine, topic, "two", 10)
    assert second is not None
    with engine.begin() as connection:
        assert not outbox.still_holds(connection, first)
        assert outbox.still_holds(connection, second)
    assert outbox.claim(engine, topic, "three", 10) is None


@pytest.mark.parametrize("topic", ["index", "matching"])
def test_longest_lease_and_pause_are_kept_when_the_clock_stands(engine, topic):
    owe(engine, topic=topic)
    held = outbox.claim(engine, topic, "one", 600)
    assert outbox.claim(engine, topic, "two", 10) is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox SET attempts = 20"))
    outbox.release(engine, held, "away")
    pass_time(engine, -outbox.LONGEST_DELAY_SECONDS[topic] * 1.25)
    assert outbox.backlog(engine, topic).due == 0
    assert outbox.claim(engine, topic, "two", 10) is None
