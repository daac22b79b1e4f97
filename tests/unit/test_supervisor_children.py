"""How the supervisor treats processes that die, hang, fail or need each other."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from lorauter_suite.embedded.process import PartFailed, ProcessSpec
from lorauter_suite.logs import LogFolder
from lorauter_suite.supervisor import Supervisor


def eventually(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not true in time"
        time.sleep(0.01)


def shell(name, script, **options):
    return ProcessSpec(name, ["/bin/sh", "-c", script], **options)


@pytest.fixture
def supervised(tmp_path):
    """Builds supervisors that are stopped at the end."""
    made = []

    def make(*specs, needs=None):
        lines: list[str] = []
        supervisor = Supervisor(LogFolder(tmp_path / "logs"), lines.append, lambda: None)
        for spec in specs:
            supervisor.add(spec, (needs or {}).get(spec.name, ()))
        made.append(supervisor)
        return supervisor, lines

    yield make
    for supervisor in made:
        supervisor.stop([list(supervisor.children)], 1.0)


def test_a_child_is_started_again_with_growing_delays_when_it_keeps_dying(supervised):
    starts = []
    spec = shell("dying", "exit 3", prepare=lambda: starts.append(time.monotonic()))
    supervisor, lines = supervised(spec)
    supervisor.begin(30)
    eventually(lambda: len(starts) == 4)
    first, second, third = (after - before for before, after in pairwise(starts))
    assert 0.2 <= first < second < third
    assert "dying died, start 2" in lines


def test_children_start_in_order_when_they_need_each_other(supervised):
    order = []
    names = ("first", "second", "third")
    specs = [shell(name, "exec sleep 60", prepare=lambda name=name: order.append(name)) for name in names]
    supervisor, _ = supervised(*specs, needs={"second": ("first",), "third": ("second", "absent")})
    supervisor.begin(30)
    assert order == list(names)


def test_a_one_shot_runs_once_when_it_succeeds(supervised, tmp_path):
    supervisor, _ = supervised(
        shell("once", f"echo ran >> {tmp_path}/ran", once=True),
        shell("after", f"cat {tmp_path}/ran && exec sleep 60"),
        needs={"after": ("once",)},
    )
    supervisor.begin(30)
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert supervisor.children["once"].pid is None


@pytest.mark.parametrize("once", [True, False])
def test_the_start_fails_with_the_end_of_the_log_when_a_child_never_gets_ready(supervised, once):
    supervisor, _ = supervised(shell("broken", "echo boom; exit 3", once=once, probe=lambda: False))
    with pytest.raises(PartFailed, match=r"(?s)broken.*status 3.*boom"):
        supervisor.begin(20)


def test_the_start_fails_with_the_reason_when_a_child_cannot_be_prepared(supervised):
    def refuse():
        raise PartFailed("no room")

    supervisor, _ = supervised(shell("unprepared", "exit 0", prepare=refuse))
    with pytest.raises(PartFailed, match="no room"):
        supervisor.begin(20)


def test_the_start_fails_when_the_program_does_not_exist(supervised):
    supervisor, _ = supervised(ProcessSpec("absent", ["/no/such/program"], probe=lambda: False))
    with pytest.raises(PartFailed, match=r"(?s)absent.*cannot be started"):
        supervisor.begin(20)


def test_the_start_fails_when_time_runs_out(supervised):
    supervisor, _ = supervised(shell("slow", "exec sleep 60", probe=lambda: False))
    with pytest.raises(PartFailed, match="slow"):
        supervisor.begin(0.3)


def test_grandchildren_are_gone_when_their_parent_was_killed(supervised, tmp_path):
    supervisor, _ = supervised(shell("family", f"sleep 600 & echo $! > {tmp_path}/pid; exec sleep 600"))
    supervisor.begin(30)
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    grandchild = Path("/proc") / (tmp_path / "pid").read_text().strip() / "status"
    killed = supervisor.children["family"].pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: supervisor.children["family"].pid not in (killed, None))
    eventually(lambda: not grandchild.exists() or "State:\tZ" in grandchild.read_text())


def test_a_child_is_killed_when_it_ignores_the_signal_to_stop(supervised):
    supervisor, _ = supervised(shell("deaf", "trap '' TERM; while true; do sleep 0.05; done"))
    supervisor.begin(30)
    supervisor.stop([["deaf"]], 0.3)
    assert supervisor.children["deaf"].pid is None


def test_supervision_goes_on_when_nobody_reads_the_events(tmp_path):
    def closed(line):
        raise BrokenPipeError

    supervisor = Supervisor(LogFolder(tmp_path), closed, lambda: None)
    supervisor.add(shell("child", "exec sleep 60"))
    supervisor.begin(30)
    os.kill(supervisor.children["child"].pid, signal.SIGKILL)
    eventually(lambda: supervisor.children["child"].starts == 2)
    supervisor.stop([["child"]], 1.0)
