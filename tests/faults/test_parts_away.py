"""Whatever a worker needs goes away and comes back: no change is lost, and nothing has to be repaired."""

from __future__ import annotations

import os
import signal

import redis

from benchmarks.faults_kills import REPAIRED

REBUILT = '"worker.index.rebuilt"'


def test_changes_arrive_when_postgres_was_restarted(broken) -> None:
    broken.caller.replace_set()
    broken.send("postgres", signal.SIGINT)
    broken.caller.replace_set()
    broken.assert_all_arrived()


def test_changes_arrive_when_the_broker_forgot_everything_and_died(broken) -> None:
    broken.caller.replace_set()
    with redis.Redis.from_url(broken.site.suite.addresses.redis_url) as broker:
        broker.flushall()
    broken.caller.replace_set()
    broken.send("valkey", signal.SIGKILL)
    broken.caller.replace_set()
    broken.assert_all_arrived()


def test_work_is_taken_again_when_the_broker_was_away_at_the_end_of_a_task(broken, within) -> None:
    """Celery cannot acknowledge the wake-up then; it must not wait for that for ever."""
    complaint = "Couldn't ack"
    before = broken.site.logged("worker-index", complaint)
    index, valkey = broken.pid("index"), broken.pid("valkey")
    os.kill(index, signal.SIGSTOP)
    broken.caller.replace_set()
    within(broken.is_held)
    os.kill(valkey, signal.SIGSTOP)
    os.kill(index, signal.SIGCONT)
    within(lambda: broken.site.logged("worker-index", complaint) > before)
    os.kill(valkey, signal.SIGCONT)
    broken.caller.replace_set()
    assert broken.site.judge.settle(45)
    broken.assert_all_arrived()


def test_an_index_that_was_lost_is_rebuilt_and_counts_as_no_repair(broken, within) -> None:
    broken.assert_all_arrived()
    before = broken.site.logged("worker-index", REBUILT)
    broken.send("index", signal.SIGKILL)
    within(lambda: broken.site.logged("worker-index", REBUILT) > before)
    broken.assert_all_arrived()
    assert broken.site.logged("worker-index", REPAIRED) == 0
