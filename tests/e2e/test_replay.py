"""A decision's whole life: routed, explained, recorded, stored, found again, and decided anew."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable

import psycopg
import pytest

from lorauter import Client
from lorauter.errors import NotFound
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_ID, demo_tasks
from lorauter_suite.suite import Addresses

EXIT_REFUSED = 1
EXIT_USAGE = 2
SECONDS = 30

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def routed(addresses: Addresses) -> list[str]:
    """The ids of decisions that are stored: two test queries of each demo task."""
    with addresses.client() as client:
        queries = [row["input"] for task in demo_tasks() for row in task.examples("test")[:2]]
        ids = [client.route(query, pool=POOL_ID).decision_id for query in queries]
        for one in ids:
            stored(client, one)
    return ids


def stored(client: Client, decision_id: str) -> pb.Decision:
    """Returns a decision as soon as a worker has stored it."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return client.registry.get_decision(id=decision_id)
        except NotFound:
            assert time.monotonic() < deadline, "the decision was not stored in time"
            time.sleep(0.1)


def test_decision_is_found_again_after_it_was_made(client: Client, addresses: Addresses) -> None:
    routed = client.route("Write the word backwards: planet", pool=POOL_ID, exclude_adapters=["count-word-a"])
    kept = stored(client, routed.decision_id)
    assert (kept.pool, kept.strategy, kept.generation) == (POOL_ID, "default", routed.generation)
    assert kept.best_adapter == routed.best_single.adapter_id
    assert [(one.adapter_id, one.weight) for one in kept.adapters] == [
        (one.adapter_id, one.weight) for one in routed.adapters
    ]
    assert list(kept.options.exclude_adapters) == ["count-word-a"]
    assert (len(kept.vector), kept.text) == (2 * 384, "")
    assert kept.terms
    listed = next(client.registry.list_decisions(pool=POOL_ID, page_size=5, with_features=True))
    assert listed.time.ToMilliseconds() >= kept.time.ToMilliseconds()
    url = f"{addresses.registry_http}/v1/decisions/{kept.id}"
    asked = urllib.request.Request(url, headers=addresses.headers)
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert json.load(answer)["best_adapter"] == kept.best_adapter


def test_route_says_why_not_other_adapters(lorauter: Command) -> None:
    query = ("route", "Write the word backwards: planet")
    asked = ("--why-not", "sort-word-a", "--why-not", "nobody")
    printed = lorauter(*query, "--explain", *asked).stdout
    for part in ("decision", "of it from", "next best", "why not", "worth less", "unknown"):
        assert part in printed
    explanation = json.loads(lorauter(*query, *asked, "--json").stdout)["explanation"]
    assert [one["fate"] for one in explanation["why_not"]] == [
        "ADAPTER_FATE_WORTH_LESS",
        "ADAPTER_FATE_UNKNOWN",
    ]
    for origin in explanation["origins"]:
        assert sum(part["share"] for part in origin["tasks"]) == pytest.approx(origin["weight"])


def test_replay_changes_nothing_when_it_decides_the_same_way(routed: list[str], lorauter: Command) -> None:
    found = replayed(lorauter, "--strategy", "default")
    assert found["replayed"] >= len(routed)
    assert (found["best_single_changed"], found["action_changed"], found["changes"]) == (0, 0, [])
    utilities = found["expected_utility"]
    assert utilities["before"] > 0.5
    assert utilities["after"] == pytest.approx(utilities["before"])
    assert utilities["after_as_expected"] == utilities["before"]


def test_replay_says_what_another_strategy_changes(
    routed: list[str], lorauter: Command, client: Client
) -> None:
    found = replayed(lorauter, "--strategy", "paper", "--most", "40")
    assert found["replayed"] == 40
    assert found["best_single_changed"] == sum(one["count"] for one in found["changes"]) > 0
    assert found["expected_utility"]["after"] <= found["expected_utility"]["before"]
    counts = [one["count"] for one in found["changes"]]
    assert counts == sorted(counts, reverse=True)
    example = found["changes"][0]
    assert example["before"] != example["after"]
    assert client.registry.get_decision(id=example["example"]).best_adapter == example["before"]
    printed = lorauter("replay", POOL_ID, "--strategy", "paper").stdout
    for part in ("decisions replayed", "best single changed", "expected utility", "served before"):
        assert part in printed


def test_replay_says_what_an_older_profile_changes(routed: list[str], lorauter: Command) -> None:
    profiles = json.loads(lorauter("profile", "list", POOL_ID, "--json").stdout)
    assert len(profiles) > 1
    oldest = profiles[-1]["digest"]
    found = replayed(lorauter, "--profile", oldest[:20])
    assert found["replayed"] >= len(routed)
    utilities = found["expected_utility"]
    assert utilities["after"] <= utilities["before"] != utilities["after_as_expected"]
    both = replayed(lorauter, "--profile", oldest, "--strategy", "paper_tuned")
    assert both["expected_utility"]["after_as_expected"] != utilities["after_as_expected"]
    missing = lorauter("replay", POOL_ID, "--profile", "sha256:f00d", status=EXIT_REFUSED)
    assert "PROFILE_NOT_FOUND" in missing.stderr


def test_replay_leaves_out_and_counts_what_it_cannot_decide(
    routed: list[str], lorauter: Command, addresses: Addresses
) -> None:
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        for number, change in enumerate(("vector = ''", "encoder_digest = 'sha256:other'")):
            copied = {"id": routed[number], "copy": f"{number:032x}"}
            connection.execute("CREATE TEMP TABLE one AS SELECT * FROM decision WHERE id = %(id)s", copied)
            connection.execute(f"UPDATE one SET id = %(copy)s, time = now(), {change}", copied)
            connection.execute("INSERT INTO decision SELECT * FROM one")
            connection.execute("DROP TABLE one")
    found = replayed(lorauter, "--strategy", "paper")
    assert found["left_out"] == {
        "recorded without what a replay needs": 1,
        "recorded with another encoder": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--strategy", "paper", "--since", "0s"), EXIT_REFUSED, "NOTHING_TO_REPLAY"),
        (("--strategy", "magic"), EXIT_REFUSED, "UNKNOWN_STRATEGY"),
        ((), EXIT_USAGE, "--profile, --strategy"),
        (("--strategy", "paper", "--since", "soon"), EXIT_USAGE, "no duration"),
    ],
)
def test_replay_says_what_to_do_when_it_cannot_begin(
    routed: list[str], lorauter: Command, arguments: tuple[str, ...], status: int, said: str
) -> None:
    assert said in lorauter("replay", POOL_ID, *arguments, status=status).stderr
    lorauter("replay", "nowhere", "--strategy", "paper", status=EXIT_REFUSED)


def replayed(lorauter: Command, *arguments: str) -> dict:
    """Returns what `lorauter replay --json` prints."""
    return json.loads(lorauter("replay", POOL_ID, *arguments, "--json").stdout)
