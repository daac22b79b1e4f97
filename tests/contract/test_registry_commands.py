"""`lorauter backend` and `lorauter pool` on a real registry: what is given is what it then has."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli import app

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "dns+http://vllm.models.svc:8000"
LIMITS = ("--adapter-slots", "8", "--max-rank", "64", "--max-concurrent-requests", "128", "--shards", "2")
PATH = ("--adapters-path", "/models/adapters")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(shared: Any) -> Any:
    """The registry with pool ``p``."""
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="tiny/base"))
    return shared


async def run(served: Any, *arguments: str) -> Any:
    """Runs a command beside the event loop that serves the registry."""
    environment = {"LORAUTER_REGISTRY_ADDRESS": served.address, "COLUMNS": "200"}
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)


async def done(served: Any, *arguments: str) -> str:
    result = await run(served, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


async def backend_of(served: Any, name: str) -> pb.Backend:
    listed = (await served.rpc.ListBackends(pb.ListBackendsRequest(pool="p"))).backends
    return next(backend for backend in listed if backend.id == name)


async def test_backend_has_the_limits_that_were_given(pool: Any) -> None:
    register = ("backend", "register", "vllm", "--pool", "p", "--kind", "vllm", "--url", URL)
    printed = await done(pool, *register, *LIMITS, *PATH)
    assert "8 slots, rank 64, 128 at a time, 2 shards, /models/adapters" in printed
    found = await backend_of(pool, "vllm")
    assert (found.kind, found.url) == (pb.BACKEND_KIND_VLLM, URL)
    assert found.limits == pb.BackendLimits(
        adapter_slots=8, max_rank=64, max_concurrent_requests=128, adapters_path="/models/adapters", shards=2
    )
    answer = json.loads(await done(pool, *register, "--json"))
    assert answer["limits"]["max_rank"] == 0
    assert (await backend_of(pool, "vllm")).limits == pb.BackendLimits()


async def test_backends_are_listed_by_pool_and_drained(pool: Any) -> None:
    register = ("backend", "register", "tgi", "--pool", "p", "--kind", "tgi", "--url", "http://tgi:80")
    await done(pool, *register, "--max-rank", "16")
    table = await done(pool, "backend", "list", "--pool", "p")
    assert any({"tgi", "http://tgi:80", "ACTIVE", "16"} <= set(line.split()) for line in table.splitlines())
    listed = json.loads(await done(pool, "backend", "list", "--json"))
    assert [one["limits"]["max_rank"] for one in listed if one["id"] == "tgi"] == [16]
    assert (
        json.loads(await done(pool, "backend", "drain", "tgi", "--json"))["state"] == "BACKEND_STATE_DRAINING"
    )
    assert "DRAINING" in await done(pool, "backend", "drain", "tgi")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--kind", "triton"),
        ("--max-rank", "-8"),
        ("--adapter-slots", "many"),
        ("--shards", str(2**31)),
    ],
)
async def test_usage_is_wrong_when_an_option_cannot_be(pool: Any, wrong: tuple[str, str]) -> None:
    result = await run(pool, "backend", "register", "bad", "--pool", "p", "--url", URL, *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.output


async def test_registry_says_what_is_wrong_with_limits(pool: Any) -> None:
    register = ("backend", "register", "bad", "--pool", "p", "--kind", "tgi", "--url", URL)
    result = await run(pool, *register, "--max-rank", "12")
    assert getattr(result.exception, "reason", "") == "INVALID_FIELD"
    assert "8, 16, 32, 64, 128" in str(result.exception)


async def test_pool_is_served_as_was_said_and_the_rest_stays(pool: Any) -> None:
    serving = ("--fallback", "refuse", "--compose-on-demand", "--manifest-policy", "auto")
    memory = ("--manifest-memory", "8GiB")
    await done(pool, "pool", "create", "made", "--base-model", "tiny/base", *serving, *memory)
    wanted = pb.ServingPolicy(
        fallback=pb.FALLBACK_REFUSE,
        compose_on_demand=True,
        manifest_policy=pb.MANIFEST_POLICY_AUTO,
        manifest_memory_bytes=8 * 1024**3,
    )
    request = pb.GetPoolRequest(id="made")
    assert (await pool.rpc.GetPool(request)).serving == wanted
    await done(pool, "pool", "update", "made", "--fallback", "degrade", "--no-compose-on-demand")
    wanted.fallback, wanted.compose_on_demand = pb.FALLBACK_DEGRADE, False
    assert (await pool.rpc.GetPool(request)).serving == wanted
    shown = await done(pool, "pool", "update", "made", "--description", "of mine")
    assert "8,589,934,592 bytes" in shown
    found = await pool.rpc.GetPool(request)
    assert (found.serving, found.description) == (wanted, "of mine")


async def test_updating_nothing_is_wrong_usage(pool: Any) -> None:
    result = await run(pool, "pool", "update", "p")
    assert result.exit_code == 2
    assert "give an option" in result.output
