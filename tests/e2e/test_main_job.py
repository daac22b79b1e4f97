"""The main job: queries are routed to measured adapters and answered better than by the base."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks.faults_ledger import insist
from lorauter import Client
from lorauter.gateway.v1 import gateway_pb2
from lorauter.identifiers import decode_generation
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import (
    POOL_DIRECTORY,
    POOL_ID,
    VALIDATION_EXAMPLES,
    demo_tasks,
    seed_adapter,
    seed_task,
)
from lorauter_suite.suite import Addresses
from lorauter_suite.walkthrough import ask, sample_queries

ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until the condition holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


def test_routed_answers_are_right_and_the_base_alone_is_not(client: Client) -> None:
    answers = ask(client, sample_queries(10), lambda: None)
    routed = sum(answer.routed_is_right for answer in answers)
    base = sum(answer.base_is_right for answer in answers)
    assert len(answers) >= 160
    assert routed >= 0.9 * len(answers)
    assert base <= routed / 2


def test_answer_says_what_served_it(client: Client) -> None:
    query = sample_queries(1)[0]
    answer = client.generate(query.text, pool=POOL_ID, max_new_tokens=query.max_new_tokens)
    assert answer.served.backend_id == "engine"
    assert answer.served.composition in (gateway_pb2.COMPOSITION_EXACT, gateway_pb2.COMPOSITION_SINGLE)
    decision = answer.decision
    expected = decision.adapters if decision.measured else [decision.best_single]
    assert [a.adapter_id for a in answer.served.adapters] == [a.adapter_id for a in expected]
    assert abs(sum(a.weight for a in answer.served.adapters) - 1) < 1e-9


def test_new_task_is_embedded_and_matched_when_registered_through_rest(
    client: Client, addresses: Addresses
) -> None:
    demo = next(demo_tasks())
    body = {"id": "one-more", "pool": POOL_ID, "metric": "exact_match"}
    assert httpx.post(f"{addresses.registry_http}/v1/tasks", json=body, headers=addresses.headers).is_success
    lines = (demo.directory / "test.jsonl").read_bytes().splitlines()[:20]
    url = f"{addresses.registry_http}/v1/tasks/one-more/validation-set"
    headers = {"content-type": "application/jsonl", **addresses.headers}
    put = httpx.put(url, content=b"\n".join(lines), headers=headers)
    assert put.is_success, put.text
    generation = put.json()["generation"]
    eventually(lambda: client.registry.get_task(id="one-more").state >= pb.TASK_STATE_EMBEDDED)
    text = demo.examples("test")[0]["input"]
    decision = insist(lambda: client.route(text, pool=POOL_ID, min_generation=generation))
    assert is_at_least(decision.generation, generation)
    assert "one-more" in {match.task_id for match in decision.tasks}
    eventually(lambda: client.registry.get_task(id="one-more").state == pb.TASK_STATE_MATCHED)
    client.registry.delete_task(id="one-more")


def is_at_least(generation: str, other: str) -> bool:
    """Returns whether a generation of the suite's tenant is another one or a later one."""
    return decode_generation(generation, "default") >= decode_generation(other, "default")


def test_readme_snippet_runs(addresses: Addresses) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    environment = {
        **os.environ,
        "LORAUTER_REGISTRY_ADDRESS": addresses.registry_grpc,
        "LORAUTER_ROUTER_ADDRESS": addresses.router_grpc,
        "LORAUTER_GATEWAY_ADDRESS": addresses.gateway_grpc,
        "LORAUTER_API_KEY": addresses.api_key,
    }
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_demo_task_gets_its_validation_set_when_an_earlier_start_was_interrupted(client: Client) -> None:
    task = replace(next(demo_tasks()), id="interrupted")
    client.registry.create_task(id=task.id, pool=POOL_ID, metric=task.metric)
    for _ in range(2):
        seed_task(client, task)
        made = client.registry.get_task(id=task.id)
        assert (made.version, made.example_count) == (1, VALIDATION_EXAMPLES)
    client.registry.delete_task(id=task.id)


def test_a_retired_demo_adapter_stays_so_when_the_suite_starts_again(
    client: Client, addresses: Addresses
) -> None:
    folder = Path(addresses.incoming) / "started-twice"
    shutil.copytree(next((POOL_DIRECTORY / "adapters").iterdir()), folder)
    seed_adapter(client, folder)
    client.registry.retire_adapter(id=folder.name)
    before = client.registry.get_adapter(id=folder.name)
    seed_adapter(client, folder)
    assert client.registry.get_adapter(id=folder.name).etag == before.etag
