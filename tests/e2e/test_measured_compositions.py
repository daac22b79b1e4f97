"""A composition that was measured to win is served as it is, by the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults_ledger import insist
from lorauter import Client
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, DemoTask, demo_tasks
from lorauter_suite.suite import Suite
from lorauter_suite.walkthrough import follow_matching

BLENDS = {
    "ahead": {"shift-word-a": 1.0, "sort-word-a": 0.5},
    "behind": {"shift-word-a": 1.0, "sort-word-a": -0.65},
}
"""Each errs in a way of its own; together they are what shifts words."""


def shift_word() -> DemoTask:
    return next(task for task in demo_tasks() if task.id == "shift-word")


@pytest.fixture
def client(tmp_path: Path, blended: Callable[[Path, dict[str, float]], Path]) -> Iterator[Client]:
    """A client of a suite of its own with one task and two adapters, matched."""
    with Suite(tmp_path) as suite:
        found = suite.addresses
        with found.client() as connected:
            connected.registry.create_pool(
                id=POOL_ID, base_model="lorauter/demo-base", base_path=str(POOL_DIRECTORY / "base")
            )
            connected.registry.register_backend(
                id="engine", pool=POOL_ID, kind=pb.BackendKind.BACKEND_KIND_ENGINE, url=found.engine_http
            )
            for name, weights in BLENDS.items():
                path = blended(Path(found.incoming) / name, weights)
                connected.registry.register_adapter(id=name, pool=POOL_ID, path=str(path))
            task = shift_word()
            settings = pb.GenerationSettings(max_new_tokens=task.max_new_tokens, stop=task.stop)
            connected.registry.create_task(
                id=task.id, pool=POOL_ID, metric=task.metric, generation_settings=settings
            )
            examples = [pb.ValidationExample(**example) for example in task.examples("validation")]
            connected.registry.put_validation_set(task.id, examples)
            for _ in follow_matching(connected):
                pass
            yield connected


def test_winning_composition_is_served_exactly_and_answers_better_than_its_members(client: Client) -> None:
    task = shift_word()
    examples = task.examples("test")[:20]
    generation = client.registry.get_generation().generation
    text = examples[0]["input"]
    insist(lambda: client.route(text, min_generation=generation))  # so that the router has what was measured
    right = dict.fromkeys(("auto", *BLENDS), 0)
    for example in examples:
        answer = client.generate(example["input"], max_new_tokens=task.max_new_tokens)
        assert answer.served.composition == gateway_pb2.COMPOSITION_EXACT
        assert answer.decision.measured
        assert not answer.served.degraded_reason
        assert {each.adapter_id for each in answer.served.adapters} == set(BLENDS)
        right["auto"] += answer.text.strip() == example["target"]
        for name in BLENDS:
            alone = client.generate(example["input"], adapter=name, max_new_tokens=task.max_new_tokens)
            right[name] += alone.text.strip() == example["target"]
    assert right["auto"] >= 0.9 * len(examples)
    assert right["auto"] > max(right[name] for name in BLENDS)
    decision = client.route(text, explain=True)
    (served,) = [each for each in decision.explanation.compositions if each.served]
    assert served.gain > served.gain_error
    assert "composition" in decision.action_reason
