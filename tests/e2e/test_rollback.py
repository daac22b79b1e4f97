"""Rollback: an older profile's constants are served again, at once, on today's tasks."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from lorauter import Client
from lorauter.errors import DeadlineExceeded
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_ID

Command = Callable[..., subprocess.CompletedProcess[str]]

EXIT_REFUSED = 1

NEW_TASK = "tides"
EXAMPLES = [pb.ValidationExample(input=f"When is high tide in harbour {n}?", target=str(n)) for n in range(4)]
QUERY = "When is high tide in harbour 9?"


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded("NOT_IN_TIME", f"it did not hold within {seconds:g} s")
        time.sleep(0.02)


def served(client: Client) -> str:
    return client.route(QUERY, pool=POOL_ID).profile_digest


@pytest.fixture
def older(client: Client, lorauter: Command) -> Iterator[str]:
    """The profile of before a task that came since, which is there until the test ends."""
    found = served(client)
    client.registry.create_task(id=NEW_TASK, pool=POOL_ID, metric="exact_match")
    client.registry.put_validation_set(NEW_TASK, EXAMPLES)
    until(lambda: served(client) != found, 60)
    yield found
    client.registry.delete_task(id=NEW_TASK)
    lorauter("rollback", POOL_ID, "--auto")


def test_answer_names_the_restored_profile_and_knows_a_newer_task(client: Client, older: str) -> None:
    client.registry.activate_profile(pool=POOL_ID, digest=older)
    until(lambda: served(client) == older, 60)
    assert client.route(QUERY, pool=POOL_ID).tasks[0].task_id == NEW_TASK


def test_command_waits_until_routers_serve_the_profile_and_ends_it_again(
    client: Client, lorauter: Command, older: str
) -> None:
    newer = served(client)
    assert f"{older} is active" in lorauter("rollback", POOL_ID, "--to", older[:23]).stdout
    assert served(client) == older
    listed = json.loads(lorauter("profile", "list", POOL_ID, "--json").stdout)
    assert [one["digest"] for one in listed if one["active"]] == [older]
    assert {"kept", "log_loss_before", "log_loss_fitted"} <= set(
        next(one["figures"] for one in listed if one["digest"] == newer)
    )
    ended = lorauter("rollback", POOL_ID, "--auto").stdout
    assert served(client) in ended
    assert "accepted" in lorauter("rollback", POOL_ID, "--to", older, "--no-wait").stdout


def test_command_says_what_is_wrong_with_a_profile(lorauter: Command) -> None:
    refused = lorauter("rollback", POOL_ID, "--to", "sha256:0nowhere", status=EXIT_REFUSED)
    assert "profile list" in refused.stderr
    refused = lorauter("rollback", POOL_ID, "--to", "sha", status=EXIT_REFUSED)
    assert "begin with" in refused.stderr
    assert "not both" in lorauter("rollback", POOL_ID, "--to", "x", "--auto", status=2).stderr
