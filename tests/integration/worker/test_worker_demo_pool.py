"""Matching on the real engine with the demo pool: found adapters are the trained ones."""

import json
import os
import subprocess
import sys

import pytest

from lorauter.lora.store import AdapterStore
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec, PromptSpec, build_input
from lorauter_worker.adapters.engine_evaluator import EngineEvaluator
from lorauter_worker.ports import Question, Scoring
from lorauter_worker.service.automatching import start_matchings
from lorauter_worker.service.matching import Matcher

TASKS = ("reverse-word", "sort-word", "dash-word")
ADAPTERS = ("reverse-word-a", "sort-word-a", "dash-word-a")


@pytest.fixture(scope="module")
def store(tmp_path_factory, demo_pool) -> tuple[AdapterStore, dict[str, str]]:
    """A store with some of the demo's adapters, and their digests."""
    store = AdapterStore(tmp_path_factory.mktemp("store"))
    return store, {name: store.put(demo_pool / "adapters" / name) for name in ADAPTERS}


@pytest.fixture(scope="module")
def engine_url(demo_pool, store):
    """A running engine with the demo's base."""
    with subprocess.Popen(
        [sys.executable, "-m", "lorauter_engine.main"],
        env={
            **os.environ,
            "LORAUTER_MODEL": str(demo_pool / "base"),
            "LORAUTER_MODEL_ID": "lorauter/demo-base",
            "LORAUTER_ADAPTER_STORE": str(store[0].root),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['http_port']}"
        process.kill()


def examples(demo_pool, task: str, count: int) -> list[tuple[str, str]]:
    lines = (demo_pool / "tasks" / task / "validation.jsonl").read_text().splitlines()[:count]
    return [(row["input"], row["target"]) for row in map(json.loads, lines)]


def test_each_task_prefers_its_own_adapter_when_the_demo_pool_is_matched(
    registry, settings, index_worker, demo_pool, store, engine_url
):
    registry.add_pool()
    registry.add_backend(engine_url)
    for task in TASKS:
        registry.put_task(task, examples(demo_pool, task, 20))
    for adapter in ADAPTERS:
        registry.add_version(adapter, store[1][adapter])
    registry.add_version("broken", "sha256:" + "0" * 64)
    index_worker.indexer.drain()
    assert index_worker.wakeups.names == ["matching"]
    assert start_matchings(registry.engine, registry.tenant) == 0

    Matcher(registry.engine, EngineEvaluator, index_worker.wakeups, settings, "test").drain()
    (operation,) = registry.operations()
    assert (operation.state, operation.error) == ("SUCCEEDED", "")
    index_worker.indexer.drain()
    assert registry.outbox() == []
    for task in index_worker.pool().tasks:
        best, *others = task.affinities
        assert best.adapter_id == f"{task.task_id}-a"
        assert best.score > 0.5
        assert {a.adapter_id for a in others} == {"base", *ADAPTERS} - {best.adapter_id}
        assert registry.task_state(task.task_id) == "MATCHED"
    state = "SELECT state FROM adapter_version WHERE adapter_id = 'broken'"
    assert registry.scalar(state) == "QUARANTINED"


def test_scores_are_those_of_generated_answers_when_wrong_ones_are_checked(demo_pool, store, engine_url):
    evaluator = EngineEvaluator([engine_url], timeout_seconds=60)
    asked = [
        Question(build_input(PromptSpec(), text), target, digest)
        for task in TASKS
        for text, target in examples(demo_pool, task, 10)
        for digest in ["", *store[1].values()]
    ]
    exact_match = metric("exact_match")
    scored = evaluator.evaluate(asked, Scoring(exact_match, GenerationSpec(max_new_tokens=32)))
    # a stop text that never comes makes any evaluator generate
    stopped = GenerationSpec(max_new_tokens=32, stop=("\x01",))
    assert scored == EngineEvaluator([engine_url], 60).evaluate(asked, Scoring(exact_match, stopped))
    assert 0.2 < sum(score == 1.0 for score in scored) / len(scored) < 0.8
