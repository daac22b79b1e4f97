"""What answers where a backend cannot do as decided: the next best with its reason, never something else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from lorauter.compositions_wanted import WANTED, WRITTEN, Refusal, Wanted, Written, dump_fate, key_of
from lorauter.errors import Exhausted, FailedPrecondition
from lorauter.gateway.v1.gateway_pb2 import COMPOSITION_BASE, COMPOSITION_COMPOSITE, COMPOSITION_SINGLE
from lorauter.router.v1 import router_pb2 as pb
from lorauter_gateway.domain.plan import Why
from lorauter_gateway.service.replica import Found
from tests.integration.gateway.residents import Server, until
from tests.integration.gateway.stage import HEX, Engine, alone, decided, digest, manifest, staged

TGI = pb.Backend(backend_id="tgi", kind="tgi", max_rank=128)
VLLM = pb.Backend(backend_id="vllm", kind="vllm", max_rank=16, adapter_slots=2)
MIX = "mix-" + "1" * 16


def tgi(*names: str) -> Server:
    """A server with these names that answers by the base, in silence, under any other."""
    server = Server(100)
    server.names = dict.fromkeys(names, "/x")
    server.says_missing = False
    return server


async def test_listed_adapter_that_is_there_is_served_under_its_name() -> None:
    server = tgi(HEX["a"])
    async with staged({"tgi": server}, [TGI], manifests=[manifest("m", *alone("a"))]) as stage:
        for asked in (decided({"a": 1.0}), "a"):
            text, serving = await stage.ask(asked)
            assert text == serving.plan.served_name == HEX["a"]
            assert (serving.plan.composition, serving.plan.degraded_reason) == (COMPOSITION_SINGLE, "")


async def test_listed_adapter_that_is_not_there_is_replaced_and_never_by_the_base_under_its_name() -> None:
    server = tgi(HEX["b"])
    async with staged({"tgi": server}, [TGI], manifests=[manifest("m", *alone("a", "b"))]) as stage:
        for _ in range(3):
            text, serving = await stage.ask(decided({"a": 1.0}, runners="cb"))
            assert text == HEX["b"]
            assert [adapter.adapter_id for adapter in serving.plan.adapters] == ["b"]
            assert "a@1 is not served: tgi does not serve it" in serving.plan.degraded_reason
            assert serving.plan.why is Why.ABSENT
        with pytest.raises(FailedPrecondition) as caught:
            await stage.ask("a")
        assert caught.value.reason == "ADAPTER_NOT_LOADED"
        text, serving = await stage.ask(decided({"a": 1.0}))
        assert (text, serving.plan.composition) == ("base", COMPOSITION_BASE)
        assert "the base replaces it" in serving.plan.degraded_reason
        assert server.reads[HEX["a"]] == 1
        assert HEX["a"] not in server.asked


async def test_absent_adapter_is_looked_for_again_after_a_restart() -> None:
    server = tgi()
    async with staged({"tgi": server}, [TGI], manifests=[manifest("m", *alone("a"))]) as stage:
        with pytest.raises(FailedPrecondition):
            await stage.ask("a")
        (replica,) = stage.replicas.all()
        server.healthy = False

        async def is_lost() -> bool:
            return replica.is_lost

        await until(is_lost)
        server.names[HEX["a"]] = "/x"
        server.healthy = True

        async def is_known() -> bool:
            verdict = replica.verdicts.get(HEX["a"])
            return verdict is not None and verdict.found is Found.PASSED

        await until(is_known)
        assert (await stage.ask("a"))[0] == HEX["a"]


async def test_pods_of_old_and_new_manifest_serve_side_by_side_what_each_has() -> None:
    old, new = tgi(HEX["a"], HEX["b"]), tgi(HEX["b"], HEX["c"])
    backends = [pb.Backend(backend_id=name, kind="tgi") for name in ("old", "new")]
    manifests = [manifest("2", *alone("b", "c")), manifest("1", *alone("a", "b"))]
    async with staged({"old": old, "new": new}, backends, manifests=manifests) as stage:
        for _ in range(4):
            for name, holders in (("a", {"old"}), ("b", {"old", "new"}), ("c", {"new"})):
                text, serving = await stage.ask(name)
                assert text == HEX[name]
                assert serving.backend_id in holders
    assert not {HEX["a"]} & set(new.asked)
    assert not {HEX["c"]} & set(old.asked)


async def test_many_first_requests_check_once() -> None:
    server = tgi(HEX["a"])
    async with staged({"tgi": server}, [TGI], manifests=[manifest("m", *alone("a"))]) as stage:
        answers = await asyncio.gather(*(stage.ask("a") for _ in range(20)))
    assert {text for text, _ in answers} == {HEX["a"]}
    assert server.reads[HEX["a"]] == 1


async def test_listed_composite_serves_exactly_its_set() -> None:
    server = tgi(MIX, HEX["a"])
    listed = manifest("m", (MIX, {"a": 0.6, "b": 0.4}), *alone("a"))
    async with staged({"tgi": server}, [TGI], manifests=[listed]) as stage:
        text, serving = await stage.ask(decided({"a": 0.6, "b": 0.4}))
        assert (text, serving.plan.composition) == (MIX, COMPOSITION_COMPOSITE)
        assert serving.plan.degraded_reason == ""
        text, serving = await stage.ask(decided({"a": 0.7, "b": 0.3}))
        assert (text, serving.plan.composition) == (HEX["a"], COMPOSITION_SINGLE)
        assert "the weighted set is not served" in serving.plan.degraded_reason


async def test_set_whose_ranks_do_not_fit_loses_its_smallest_weight_and_says_so() -> None:
    server = tgi(MIX)
    listed = manifest("m", (MIX, {"a": 0.625, "b": 0.375}))
    async with staged({"tgi": server}, [TGI], manifests=[listed]) as stage:
        text, serving = await stage.ask(decided({"a": 0.5, "b": 0.3, "c": 0.2}, rank=64))
        assert text == MIX
        assert {a.adapter_id: a.weight for a in serving.plan.adapters} == pytest.approx(
            {"a": 0.625, "b": 0.375}
        )
        assert "without c" in serving.plan.degraded_reason
        stage.pool.serving.refuse_degraded = True
        await stage.update()
        with pytest.raises(FailedPrecondition) as caught:
            await stage.ask(decided({"a": 0.5, "b": 0.3, "c": 0.2}, rank=64))
        assert caught.value.reason == "COMPOSITION_NOT_SERVABLE"


async def test_policy_that_refuses_gets_an_error_where_the_decision_cannot_be_served() -> None:
    server = tgi(HEX["a"])
    policy = pb.ServingPolicy(refuse_degraded=True)
    listed = [manifest("m", *alone("a", "b"))]
    async with staged({"tgi": server}, [TGI], manifests=listed, serving=policy) as stage:
        assert (await stage.ask(decided({"a": 1.0})))[0] == HEX["a"]
        with pytest.raises(FailedPrecondition) as single:
            await stage.ask(decided({"b": 1.0}, runners="a"))
        assert single.value.reason == "ADAPTER_NOT_LOADED"
        with pytest.raises(FailedPrecondition) as composed:
            await stage.ask(decided({"a": 0.6, "b": 0.4}))
        assert composed.value.reason == "COMPOSITION_NOT_SERVABLE"


async def test_adapter_with_another_effect_than_the_engine_s_is_quarantined() -> None:
    server, engine = tgi(HEX["a"], HEX["b"]), Engine()
    engine.strengths[digest("b")] = 3.0
    backends = [TGI, pb.Backend(backend_id="engine", kind="engine")]
    listed = [manifest("m", *alone("a", "b"))]
    async with staged({"tgi": server, "engine": engine}, backends, manifests=listed) as stage:
        used = {(await stage.ask("a"))[1].backend_id for _ in range(4)}
        assert used == {"tgi", "engine"}
        assert {(await stage.ask("b"))[1].backend_id for _ in range(4)} == {"engine"}
        replica = next(each for each in stage.replicas.all() if each.endpoint.kind == "tgi")
        assert replica.verdicts[HEX["b"]].found is Found.QUARANTINED
        assert "engine makes of it" in replica.verdicts[HEX["b"]].reason


async def test_single_adapter_is_loaded_for_its_first_request(redis_url: str) -> None:
    server = Server(2)
    async with staged({"vllm": server}, [VLLM], redis_url) as stage:
        for name in ("a", "b", "a"):
            text, serving = await stage.ask(name)
            assert text == serving.plan.served_name == HEX[name]
    assert server.loads == {HEX["a"]: 1, HEX["b"]: 1}


async def test_adapter_of_too_large_a_rank_is_replaced(redis_url: str) -> None:
    async with staged({"vllm": Server(2)}, [VLLM], redis_url) as stage:
        decision = decided({"a": 1.0}, rank=64)
        decision.runners_up.append(pb.BestSingle(adapter_id="b", version=1, digest=digest("b"), rank=16))
        text, serving = await stage.ask(decision)
        assert text == HEX["b"]
        assert "a is of rank 64; the backend takes 16" in serving.plan.degraded_reason


async def test_adapter_that_finds_no_slot_is_replaced_by_one_that_is_there(redis_url: str) -> None:
    server = Server(1)
    backend = pb.Backend(backend_id="vllm", kind="vllm", adapter_slots=1)
    async with staged({"vllm": server}, [backend], redis_url) as stage:
        await stage.ask("b")
        held = asyncio.Event()
        asked = asyncio.Event()
        plain = server.generate

        async def slow(call: Any) -> Any:
            asked.set()
            await held.wait()
            return await plain(call)

        server.generate = slow  # type: ignore[method-assign]
        busy = asyncio.create_task(stage.ask("b"))
        await asyncio.wait_for(asked.wait(), 30)
        server.generate = plain  # type: ignore[method-assign]
        text, serving = await stage.ask(decided({"a": 1.0}, runners="b"))
        assert text == HEX["b"]
        assert serving.plan.why is Why.NO_SLOT
        held.set()
        await busy
        assert (await stage.ask("a"))[0] == HEX["a"]
    assert server.violations == []


async def test_restarted_server_is_loaded_again_within_the_request(redis_url: str) -> None:
    server = Server(2)
    async with staged({"vllm": server}, [VLLM], redis_url) as stage:
        await stage.ask("a")
        server.names.clear()
        text, serving = await stage.ask("a")
        assert text == HEX["a"]
        assert serving.plan.degraded_reason == ""
    assert server.loads == {HEX["a"]: 2}


async def test_backend_that_is_removed_while_it_loads_leaves_the_request_to_others(redis_url: str) -> None:
    server = Server(2)
    server.may_load.clear()
    listed = [manifest("m", *alone("b"))]
    drivers = {"vllm": server, "tgi": tgi(HEX["b"])}
    async with staged(drivers, [VLLM, TGI], redis_url, manifests=listed) as stage:
        alone_there = asyncio.create_task(stage.ask(decided({"a": 1.0}, runners="b")))
        await asyncio.wait_for(server.began.wait(), 30)
        del stage.pool.backends[0]
        await stage.update()
        text, serving = await alone_there
        assert text == HEX["b"]
        assert serving.plan.why in (Why.NO_BACKEND, Why.NOT_LISTED)
        assert [replica.endpoint.kind for replica in stage.replicas.all()] == ["tgi"]


async def test_set_is_served_single_where_nothing_is_composed_on_demand(redis_url: str) -> None:
    async with staged({"vllm": Server(2)}, [VLLM], redis_url) as stage:
        text, serving = await stage.ask(decided({"a": 0.6, "b": 0.4}))
        assert text == HEX["a"]
        assert "one adapter per request" in serving.plan.degraded_reason
    with redis.Redis.from_url(redis_url) as client:
        assert client.xlen(WANTED) == 0


async def test_set_is_written_and_loaded_beside_requests_then_served_as_one(redis_url: str) -> None:
    server = Server(2)
    decision = decided({"a": 0.6, "b": 0.4})
    policy = pb.ServingPolicy(compose_on_demand=True)
    async with staged({"vllm": server}, [VLLM], redis_url, serving=policy) as stage:
        for _ in range(3):
            text, serving = await stage.ask(decision)
            assert text == HEX["a"]
            assert "being written beside this request" in serving.plan.degraded_reason
        with redis.Redis.from_url(redis_url) as client:
            ((_, entry),) = client.xrange(WANTED)
            wanted = Wanted.read(entry)
            assert (wanted.pool, wanted.backend_kind, wanted.max_rank) == ("p", "vllm", 16)
            client.hset(WRITTEN, key_of(wanted), dump_fate(Written(MIX, 16, wanted.members)))
        server.may_load.clear()
        text, serving = await stage.ask(decision)
        assert text == HEX["a"]
        assert serving.plan.why is Why.NOT_RESIDENT
        server.may_load.set()

        async def is_composed() -> bool:
            text, serving = await stage.ask(decision)
            return text == MIX and serving.plan.composition == COMPOSITION_COMPOSITE

        await until(is_composed)
        text, serving = await stage.ask(decision)
        assert serving.plan.degraded_reason == ""
    assert server.loads[MIX] == 1
    assert server.violations == []


async def test_set_that_a_worker_refused_to_write_says_why(redis_url: str) -> None:
    policy = pb.ServingPolicy(compose_on_demand=True)
    async with staged({"vllm": Server(2)}, [VLLM], redis_url, serving=policy) as stage:
        await stage.ask(decided({"a": 0.6, "b": 0.4}))
        with redis.Redis.from_url(redis_url) as client:
            ((_, entry),) = client.xrange(WANTED)
            fate = Refusal("COMPOSITE_LAYER_UNSUPPORTED", "a layer is missing", 4e9)
            client.hset(WRITTEN, key_of(Wanted.read(entry)), dump_fate(fate))
        _, serving = await stage.ask(decided({"a": 0.6, "b": 0.4}))
        assert "a layer is missing" in serving.plan.degraded_reason


async def test_adapter_whose_replicas_are_full_is_not_answered_by_the_base(redis_url: str) -> None:
    held = asyncio.Event()

    class Slow(Server):
        async def generate(self, call: Any) -> Any:
            self.began.set()
            await held.wait()
            return await super().generate(call)

    server = Slow(2)
    full = pb.Backend(backend_id="vllm", kind="vllm", adapter_slots=2, max_concurrent_requests=1)
    free = pb.Backend(backend_id="tgi", kind="tgi")
    async with staged({"vllm": server, "tgi": tgi()}, [full, free], redis_url) as stage:
        busy = asyncio.create_task(stage.ask("a"))
        await asyncio.wait_for(server.began.wait(), 30)
        with pytest.raises(Exhausted) as caught:
            await stage.ask(decided({"a": 1.0}))
        assert caught.value.reason == "BACKENDS_FULL"
        assert (await stage.ask())[0] == "base"
        held.set()
        assert (await busy)[0] == HEX["a"]


async def test_gateway_without_redis_serves_loaded_adapters_and_replaces_others() -> None:
    server = Server(2)
    server.names = {HEX["a"]: "/x"}
    async with staged({"vllm": server}, [VLLM]) as stage:
        (replica,) = stage.replicas.all()

        async def is_known() -> bool:
            return stage.replicas.held(replica) == [HEX["a"]]

        await until(is_known)
        assert (await stage.ask("a"))[0] == HEX["a"]
        text, serving = await stage.ask(decided({"b": 1.0}, runners="a"))
        assert text == HEX["a"]
        assert "no REDIS_URL" in serving.plan.degraded_reason
    assert server.loads == {}
