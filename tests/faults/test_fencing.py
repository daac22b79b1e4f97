"""A worker that was stopped past its lease wakes up late: what it still does leaves no trace."""

from __future__ import annotations

import os
import signal

from benchmarks.faults_kills import children
from benchmarks.faults_swaps import worker
from benchmarks.faults_trials import SETTINGS
from lorauter.encoder import DEFAULT_ENCODER
from lorauter.index import QdrantIndex

ENDS = ("worker.index.lease_lost", "worker.snapshot.published", "worker.work.failed")
"""What a child logs when it is done with its work, or without."""


def test_a_worker_that_wakes_after_its_lease_changes_nothing(broken, within) -> None:
    """Its child is stopped with the work in its hands; another worker does that work, and more."""
    broken.caller.replace_set()
    broken.assert_all_arrived()
    index = QdrantIndex(broken.site.suite.addresses.index_http)
    before = index.published("default")
    halted, index_process = children(broken.pid("worker-index")), broken.pid("index")

    os.kill(index_process, signal.SIGSTOP)
    broken.caller.replace_set()
    within(broken.is_held)
    for pid in halted:
        os.kill(pid, signal.SIGSTOP)
    os.kill(index_process, signal.SIGCONT)
    ended = how_many_ended(broken)
    with worker(broken.site, DEFAULT_ENCODER, **SETTINGS):
        broken.caller.replace_set()
        assert broken.site.judge.settle(60)
        newest = index.published("default")
        assert newest[0] > before[0]
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
        within(lambda: how_many_ended(broken) > ended)
        assert index.published("default") == newest
    broken.assert_all_arrived()


def how_many_ended(broken) -> int:
    return sum(broken.site.logged("worker-index", words) for words in ENDS)
