"""Compositions measured on the real engine, of adapters that err in opposite ways and of some that do not."""

from collections import Counter

import pytest
from sqlmodel import Session, col, select

from lorauter.routing import Action, decide
from lorauter.routing.strategies.strategy import Query
from lorauter.store import tables
from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.ports import Fault, Refused

BLENDS = {
    "ahead": {"shift-word-a": 1.0, "sort-word-a": 0.5},
    "behind": {"shift-word-a": 1.0, "sort-word-a": -0.65},
    "good": {"reverse-word-a": 1.0},
    "blurred": {"reverse-word-a": 1.0, "sort-word-a": 0.5},
}
"""Together the first two are what shifts words; the fourth only makes the third worse."""

MEASURED = 2 * 5 * 30
"""Evaluations of two tasks, four adapters and the base, and 30 examples, half of which judge."""


@pytest.fixture
def demo(registry, demo_engine, blended, tmp_path):
    registry.add_pool()
    registry.add_backend(demo_engine.url)
    for task in ("shift-word", "reverse-word"):
        registry.put_task(task, demo_engine.examples(task, 30))
    for name, weights in BLENDS.items():
        registry.add_version(name, demo_engine.store.put(blended(tmp_path / name, weights)))
    registry.execute("UPDATE task SET state = 'EMBEDDED'")
    return registry


def compositions(demo, task: str) -> dict[tuple[tuple[str, float], ...], tables.Composition]:
    """What is stored of a task's compositions, by members and weights."""
    table = tables.Composition
    with Session(demo.engine) as session:
        chosen = select(table).where(table.tenant == demo.tenant, table.task_id == task)
        rows = session.exec(chosen.order_by(col(table.gain).desc())).all()
    return {tuple(sorted((each["adapter_id"], each["weight"]) for each in row.members)): row for row in rows}


EVENLY = (("ahead", 0.5), ("behind", 0.5))


def test_a_composition_that_wins_is_stored_and_routed_to_and_others_are_not(
    demo, matchings, demo_engine, encoder, index_worker
):
    before = demo_engine.scored()
    id_ = matchings.start()
    matchings.matcher(make_evaluator).drain()
    won = compositions(demo, "shift-word")
    lost = compositions(demo, "reverse-word")
    assert won[EVENLY].gain > won[EVENLY].gain_error
    assert won[EVENLY].score > 0.9
    singles = matchings.affinities()
    assert {singles["shift-word", name, 1].eligible for name in ("ahead", "behind")} == {True}
    assert lost
    assert not [row for row in lost.values() if row.gain > row.gain_error]
    rows = [*won.values(), *lost.values()]
    assert {row.count for row in rows} == {15}
    assert all(abs(sum(each["weight"] for each in row.members) - 1) < 1e-9 for row in rows)
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", *[MEASURED + 15 * len(rows)] * 2)
    assert demo_engine.scored() - before == done.done

    index_worker.indexer.drain()
    pool = index_worker.pool()
    for task in pool.tasks:
        assert len(task.compositions) == len(won if task.task_id == "shift-word" else lost)
    decisions = {
        task: decide(pool, Query(encoder.encode([text])[0], text))
        for task in ("shift-word", "reverse-word")
        for text, _ in demo_engine.examples(task, 1)
    }
    shifting, reversing = decisions["shift-word"], decisions["reverse-word"]
    assert (shifting.action, shifting.measured) == (Action.ADAPTERS, True)
    assert {item.arm.adapter_id for item in shifting.adapters} >= {"ahead", "behind"}
    assert "composition" in shifting.reason
    assert "composition" not in reversing.reason
    assert reversing.best_single.adapter_id == "good"


def test_compositions_leave_the_snapshot_with_their_members(demo, matchings, index_worker):
    matchings.start(task_ids=["shift-word"])
    matchings.matcher(make_evaluator).drain()
    index_worker.indexer.drain()
    (task,) = [task for task in index_worker.pool().tasks if task.compositions]
    assert task.task_id == "shift-word"
    demo.execute("UPDATE adapter_version SET state = 'DISABLED' WHERE adapter_id = 'behind'")
    demo.touch()
    index_worker.indexer.drain()
    with_behind = [
        member
        for task in index_worker.pool().tasks
        for each in task.compositions
        for member in each.members
        if member[0] == "behind"
    ]
    assert with_behind == []


class Watched:
    """Makes real evaluators whose batches ``look`` sees first; what it returns is the answer instead."""

    takes_sets = True

    def __init__(self, look) -> None:
        self.look = look

    def __call__(self, backends, timeout_seconds):
        self.inner = make_evaluator(backends, timeout_seconds)
        return self

    def evaluate(self, questions, scoring, likelihood_only=False):
        instead = self.look(questions)
        return self.inner.evaluate(questions, scoring, likelihood_only) if instead is None else instead

    def close(self) -> None:
        self.inner.close()


def test_no_composition_is_measured_twice_when_a_worker_dies_in_the_middle(demo, matchings):
    asked: Counter[tuple[str, str]] = Counter()
    of_sets: list[int] = []

    def count(questions) -> None:
        asked.update((question.adapter, question.input["prompt"]) for question in questions)

    def die_in_the_third(questions) -> None:
        of_sets.extend([len(questions)] * bool(questions[0].members))
        if len(of_sets) == 3:
            raise SystemExit
        count(questions)

    id_ = matchings.start(task_ids=["shift-word"])
    with pytest.raises(SystemExit):
        matchings.matcher(Watched(die_in_the_third), matching_batch=8).drain()
    assert compositions(demo, "shift-word") == {}
    assert matchings.affinities() == {}
    matchings.free()
    matchings.matcher(Watched(count), matching_batch=8).drain()
    assert set(asked.values()) == {1}
    stored = compositions(demo, "shift-word")
    assert EVENLY in stored
    of_set = [cell for cell in asked if cell[0].startswith("mix-")]
    assert len(of_set) == 15 * len(stored)
    assert matchings.get(id_).done == MEASURED // 2 + 15 * len(stored)


def test_a_refused_composition_is_left_out_and_blamed_on_no_adapter(demo, matchings):
    def refuse(questions):
        refused = Refused(Fault.NOT_FINITE, "too much of a good thing")
        return [refused] * len(questions) if questions[0].members else None

    id_ = matchings.start(task_ids=["shift-word"])
    for _ in range(20):  # slices of one batch
        matchings.matcher(Watched(refuse), slice_seconds=0.0).drain()
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", MEASURED // 2, MEASURED // 2)
    assert demo.task_state("shift-word") == "MATCHED"
    assert compositions(demo, "shift-word") == {}
    assert matchings.quarantined().keys().isdisjoint(BLENDS)


def test_affinities_are_written_when_the_budget_ends_before_compositions(demo, matchings, demo_engine):
    before = demo_engine.scored()
    matchings.start(task_ids=["shift-word"], max_evaluations=MEASURED // 2)
    matchings.matcher(make_evaluator).drain()
    assert len(matchings.affinities()) == 5
    assert demo.task_state("shift-word") == "MATCHED"
    assert compositions(demo, "shift-word") == {}
    assert demo_engine.scored() - before == MEASURED // 2


def test_compositions_are_replaced_when_the_validation_set_is(demo, matchings, demo_engine):
    matchings.start(task_ids=["shift-word"])
    matchings.matcher(make_evaluator).drain()
    assert EVENLY in compositions(demo, "shift-word")
    demo.put_task("shift-word", demo_engine.examples("upper-name", 30))
    demo.execute("UPDATE task SET state = 'EMBEDDED'")
    matchings.start(task_ids=["shift-word"])
    matchings.matcher(make_evaluator).drain()
    assert compositions(demo, "shift-word") == {}
