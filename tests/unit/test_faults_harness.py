"""The arithmetic of `make faults`: it must see a loss, and add up what parts found."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from benchmarks.faults import DEFAULT, LONG, State, scaled
from benchmarks.faults_figures import failures, figures, percentile
from benchmarks.faults_ledger import Ledger, missing_in_snapshot
from benchmarks.faults_trials import shares
from lorauter.failpoints import POINTS
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.routing.model import Adapter, Backend, Pool, Profile, Snapshot, Task
from lorauter_worker.service.watchdog import STUCK_SECONDS, Watchdog

VERDICT = {"lost": 0, "duplicated": 0, "divergent": 0, "unsettled": 0, "words": []}
KILLS = {
    "kind": "kills",
    "changes": 100,
    "kills": 3,
    "verdict": VERDICT,
    "repaired": 0,
    "recovery_s": [3.0, 1.0, 2.0],
    "seconds": 1.0,
}
TRIALS = {"kind": "trials", "point": "publish", "trials": 5, "violations": 0, "words": [], "seconds": 1.0}
SWAPS = {
    "kind": "swaps",
    "swaps": 2,
    "routes": 50,
    "errors": 0,
    "mixed": 0,
    "stale": 1,
    "words": [],
    "seconds": 1.0,
}
CONTROL = {"kind": "control", "changes": 10, "kills": 1, "verdict": VERDICT | {"lost": 4}, "seconds": 1.0}
PARTS = (KILLS, KILLS, TRIALS, SWAPS, CONTROL)


def test_figures_add_up_what_parts_found() -> None:
    report = figures(PARTS)
    assert (report["changes"], report["kills"], report["crash_trials"]) == (200, 6, 5)
    assert report["recovery_s"] == {"p50": 2.0, "p99": 3.0}
    assert (report["alias_swaps"], report["routes_during_swaps"], report["control_lost"]) == (2, 50, 4)
    assert failures(report) == []


@pytest.mark.parametrize("name", ["lost", "duplicated", "divergent", "unsettled"])
def test_a_run_fails_when_a_verdict_is_not_clean(name: str) -> None:
    part = deepcopy(KILLS) | {"verdict": VERDICT | {name: 1, "words": ["task a"]}}
    report = figures([part, *PARTS])
    assert failures(report) == [f"{name} is 1, not 0"]
    assert report["words"] == ["task a"]


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, {"repaired": 1}, "repaired"),
        (0, {"recovery_s": [31.0]}, "recovery"),
        (2, {"violations": 1}, "violations"),
        (3, {"errors": 1}, "errors_during_swaps"),
        (3, {"mixed": 1}, "errors_during_swaps"),
        (4, {"verdict": VERDICT}, "control"),
    ],
)
def test_a_run_fails_when_a_promise_is_broken(place: int, change: dict, words: str) -> None:
    parts = [part | change if number == place else part for number, part in enumerate(PARTS)]
    (found,) = failures(figures(parts))
    assert words in found


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 31)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)) == (15.0, 30.0, 0.0)


def test_sizes_are_those_that_are_promised() -> None:
    assert (DEFAULT.changes, DEFAULT.kills, DEFAULT.trials, DEFAULT.swaps) == (10_000, 30, 200, 5)
    full = [LONG.rounds * each for each in (LONG.changes, LONG.kills, LONG.trials, LONG.swaps)]
    assert full == [100_000, 200, 1_000, 20]
    assert min(scaled(DEFAULT, 0.001).__dict__.values()) == 1


def test_trials_are_spread_over_all_points() -> None:
    assert sum(shares(200).values()) == 200
    assert set(shares(200)) == set(POINTS)
    assert max(shares(200).values()) - min(shares(200).values()) <= 1


def test_state_gives_back_what_was_kept(tmp_path) -> None:
    State(tmp_path).put("kills-0", {"lost": 0})
    assert State(tmp_path).get("kills-0") == {"lost": 0}
    assert State(tmp_path).get("kills-1") is None


def a_snapshot() -> Snapshot:
    task = Task("t", 2, "exact_match", frozenset({"new"}), 1, np.ones(2, np.float32), {}, ())
    adapter = Adapter("a", 1, "sha256:1", True, aliases=("champion",))
    backend = Backend("b", "tgi", "http://b", draining=False)
    pool = Pool(
        pool_id="p",
        base_model="base",
        base_model_aliases=(),
        untypical_policy="ROUTE",
        profile=Profile("", {}),
        tasks=(task,),
        adapters=(adapter,),
        backends=(backend,),
    )
    return Snapshot("default", 7, "", "sha256:e", {"p": pool})


def a_ledger() -> Ledger:
    latest = pb.AdapterVersion(version=1, state=pb.ADAPTER_STATE_ACTIVE)
    return Ledger(
        tasks={"t": pb.Task(version=2, tags=["new"]), "gone": None},
        adapters={"a": pb.Adapter(latest=latest, aliases={"champion": 1})},
        backends={"b": pb.Backend(state=pb.BACKEND_STATE_ACTIVE)},
    )


def test_nothing_is_missing_when_the_index_holds_what_was_acknowledged() -> None:
    assert missing_in_snapshot(a_ledger(), a_snapshot(), "p") == []


def test_every_loss_is_seen_when_the_index_is_behind() -> None:
    ledger = a_ledger()
    ledger.tasks |= {"t": pb.Task(version=2, tags=["newer"]), "new": pb.Task(version=1)}
    ledger.adapters["a"].aliases["canary"] = 1
    ledger.backends["b"].state = pb.BACKEND_STATE_DRAINING
    assert len(missing_in_snapshot(ledger, a_snapshot(), "p")) == 4
    del ledger.tasks["t"]
    assert "index: task t was never acknowledged" in missing_in_snapshot(ledger, a_snapshot(), "p")


class Dying(Exception):
    """What stands for the end of the process."""


def die() -> None:
    raise Dying


def test_watchdog_gives_up_when_work_waits_and_nobody_does_any() -> None:
    watchdog = Watchdog(lambda: True, die)
    watchdog.look(True, now=0.0)
    watchdog.look(True, now=STUCK_SECONDS - 1)
    with pytest.raises(Dying):
        watchdog.look(True, now=STUCK_SECONDS)


@pytest.mark.parametrize(("waits", "idle"), [(False, True), (True, False)])
def test_watchdog_begins_anew_when_anything_moves(waits: bool, idle: bool) -> None:
    state = [True]
    watchdog = Watchdog(lambda: state[0], die)
    watchdog.look(True, now=0.0)
    state[0] = idle
    watchdog.look(waits, now=STUCK_SECONDS)
    state[0] = True
    watchdog.look(True, now=STUCK_SECONDS + 1)
    watchdog.look(True, now=2 * STUCK_SECONDS)
