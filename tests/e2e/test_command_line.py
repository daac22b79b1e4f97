"""The command line, as people and programs use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lorauter_suite.seeding import POOL_ID, demo_tasks
from lorauter_suite.suite import Addresses

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_task_is_followed_until_it_is_matched(lorauter: Command, tmp_path: Path) -> None:
    demo = next(demo_tasks())
    file = tmp_path / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, demo.examples("test")[:20])), encoding="utf-8")
    lorauter("task", "create", "by-hand", "--pool", POOL_ID)
    put = lorauter("task", "put", "by-hand", str(file), "--wait", "matched")
    assert "20 examples" in put.stdout
    assert "by-hand MATCHED" in put.stderr
    shown = json.loads(lorauter("task", "show", "by-hand", "--json").stdout)
    assert shown["state"] == "TASK_STATE_MATCHED"
    assert shown["best_score"] > shown["base_score"]
    scores = json.loads(lorauter("affinity", "list", "--task", "by-hand", "--json").stdout)
    assert {"base", shown["best_adapter"]} <= {one["adapter_id"] for one in scores}
    lorauter("match", POOL_ID, "--task", "by-hand", "--remeasure", "--watch")
    lorauter("task", "delete", "by-hand")
    lorauter("task", "show", "by-hand", status=EXIT_REFUSED)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pool", "list"),
        ("pool", "show", POOL_ID),
        ("backend", "list"),
        ("task", "list"),
        ("adapter", "list"),
        ("affinity", "list"),
        ("operation", "list"),
        ("profile", "list", POOL_ID),
        ("doctor",),
        ("route", "Write the word backwards: planet"),
        ("generate", "Write the word backwards: planet"),
    ],
)
def test_answer_is_a_table_for_people_and_json_for_programs(
    lorauter: Command, arguments: tuple[str, ...]
) -> None:
    assert lorauter(*arguments).stdout.strip()
    assert json.loads(lorauter(*arguments, "--json").stdout)


def test_route_explains_itself(lorauter: Command) -> None:
    printed = lorauter("route", "Write the word backwards: planet", "--explain").stdout
    for part in ("best single", "typicality", "probability", "expected utility", "lexical_weight"):
        assert part in printed


def test_index_is_rebuilt_with_the_same_decisions(lorauter: Command, addresses: Addresses) -> None:
    route = ("route", "Write the word backwards: planet", "--json")
    before = json.loads(lorauter(*route).stdout)
    assert "rebuilt in" in lorauter("index", "rebuild", QDRANT_URL=addresses.index_http).stderr
    after = json.loads(lorauter(*route).stdout)
    assert [after[key] for key in ("adapters", "tasks")] == [before[key] for key in ("adapters", "tasks")]


def test_generate_streams_the_same_answer(lorauter: Command) -> None:
    query = "Write the word backwards: planet"
    assert lorauter("generate", query, "--stream").stdout == lorauter("generate", query).stdout


def test_adapter_is_registered_aliased_and_recalled(lorauter: Command, addresses: Addresses) -> None:
    incoming = Path(addresses.incoming) / "mine"
    lorauter("adapter", "register", "mine", str(incoming), "--pool", POOL_ID, status=EXIT_REFUSED)
    source = json.loads(lorauter("adapter", "list", "--json").stdout)[0]["latest"]["source"].removeprefix(
        "path:"
    )
    lorauter("adapter", "register", "mine", source, "--pool", POOL_ID)
    assert "champion -> 1" in lorauter("adapter", "alias", "mine", "champion", "1").stdout
    lorauter("adapter", "disable", "mine", "--reason", "a test", status=2)
    assert "RETIRED" in lorauter("adapter", "retire", "mine", "--successor", "reverse-word-a").stdout


def test_command_says_what_to_do_when_no_suite_runs(lorauter: Command, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(
        ("LORAUTER_REGISTRY_ADDRESS", "LORAUTER_ROUTER_ADDRESS", "LORAUTER_GATEWAY_ADDRESS"), ""
    )
    done = lorauter("task", "list", status=EXIT_UNREACHABLE, LORAUTER_DATA=str(tmp_path), **nowhere)
    assert "lorauter up" in done.stderr
