"""Validation sets that hurt, through the real worker: all are projected, and can be routed on."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sqlalchemy import insert

from lorauter.index.codec import canonical
from lorauter.routing import compile_pool, decide
from lorauter.routing.strategies.strategy import Query
from lorauter.store import tables, write
from tests.budgets import tries

HURTFUL = {
    "emoji": ["🦜" * 65_536, "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈"],
    "right-to-left": ["\u202e\u05e9\u05dc\u05d5\u05dd\u202c", "مرحبا بالعالم"],
    "control": ["\x01\x02\x1b[31m\x7f", "\u200b\ufeff"],
    "one-word": ["x" * 65_536],
    "one-token": ["add " * 16_384],
    "marks": ["e" + "\u0301\u0316" * 32_000],
    "twin-a": ["add one and two", "add three and four"],
    "twin-b": ["add one and two", "add three and four"],
}


def test_every_task_can_be_routed_on_when_validation_sets_hurt(registry, index_worker, encoder):
    registry.add_pool()
    for name, texts in HURTFUL.items():
        registry.put_task(name, [(text, "answer") for text in texts])
    index_worker.indexer.drain()
    assert registry.outbox() == []
    assert {registry.task_state(name) for name in HURTFUL} == {"EMBEDDED"}
    pool = compile_pool(index_worker.pool())
    assert [task.task_id for task in pool.tasks] == sorted(HURTFUL)
    pairs = ({"twin-a", "twin-b"}, {"emoji", "one-word"})  # the latter are unknown words to the encoder
    alike = {name: pair for pair in pairs for name in pair}
    for name, texts in HURTFUL.items():
        decision = decide(pool, Query(encoder.encode(texts[:1])[0], texts[0]))
        likely = {match.task_id: match.probability for match in decision.tasks}
        best = alike.get(name, {name})
        assert {task: likely[task] for task in best} == pytest.approx(
            dict.fromkeys(best, 1 / len(best)), abs=0.1
        )
        assert math.isfinite(decision.typicality)


def add_tasks(registry, count: int, texts: list[str]) -> int:
    """Registers tasks with one example each, in one change; task n has text n modulo their number."""
    names = [f"task-{number:05}" for number in range(count)]
    common = {"tenant": registry.tenant, "version": 1, "example_count": 1}
    version = {**common, "metric": "exact_match", "prompt_digest": f"sha256:{0:064}", "examples_version": 1}
    example = {"tenant": registry.tenant, "version": 1, "position": 0, "target": "answer"}
    with write(registry.engine, registry.tenant) as tx:
        task = {**common, "pool": "main", "metric": "exact_match", "state": "REGISTERED", "tags": []}
        task |= {"generation": tx.generation, "prompt": {}, "generation_settings": {}}
        rows = {
            tables.Task: [{**task, "id": name} for name in names],
            tables.TaskVersion: [{**version, "task_id": name} for name in names],
            tables.ValidationExample: [
                {**example, "task_id": name, "input": texts[number % len(texts)]}
                for number, name in enumerate(names)
            ],
        }
        for table, values in rows.items():
            tx.session.execute(insert(table), values)
        tx.owe("index", "main")
    return tx.generation


def test_many_tasks_with_one_example_each_are_projected_and_routed_on(registry, index_worker, encoder):
    registry.add_pool()
    count = tries(10_000, 2_000)
    texts = [f"what is {number} plus {number * number}" for number in range(100)]
    generation = add_tasks(registry, count, texts)
    projection = index_worker.indexer.projector.project(registry.tenant, time.monotonic() + 100)
    snapshot = canonical(projection.snapshot)
    assert snapshot.generation == generation
    pool = compile_pool(snapshot.pools["main"])
    assert len(pool.tasks) == count
    assert index_worker.encoder.texts == 100
    assert pool.profile.figures["examples"] == 0
    decision = decide(pool, Query(encoder.encode(texts[7:8])[0], texts[7]))
    assert {int(match.task_id[-5:]) % 100 for match in decision.tasks} == {7}
    assert np.ptp([match.probability for match in decision.tasks]) < 1e-6
