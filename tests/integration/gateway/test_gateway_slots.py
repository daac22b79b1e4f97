"""Gateways share the slots of servers that load adapters, through books in a real Valkey."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from lorauter_gateway.domain.plan import Skipped, Why
from lorauter_gateway.ports import BackendFailed, BooksAway, Grant
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_suite.embedded.valkey import valkey_process, valkey_url
from tests.integration.gateway.residents import NAMES, Member, Server, sharing, until

A, B, C = NAMES[:3]


@pytest.mark.parametrize("seed", range(4))
async def test_three_gateways_never_overfill_a_server_nor_evict_what_is_used(
    redis_url: str, seed: int
) -> None:
    draw = random.Random(seed)
    server = Server(slots=3)
    served = skipped = 0

    async def caller(members: list[Member]) -> None:
        nonlocal served, skipped
        for _ in range(25):
            try:
                async with draw.choice(members).using(draw.choice(NAMES)):
                    await asyncio.sleep(draw.random() * 0.004)
                    served += 1
            except Skipped as problem:
                skipped += problem.why is Why.NO_SLOT
                await asyncio.sleep(draw.random() * 0.004)
            if draw.random() < 0.05:
                await draw.choice(members).residence.reconcile()

    async with sharing(server, redis_url, 3) as members:
        await asyncio.gather(*(caller(members) for _ in range(6)))
        assert server.violations == []
        assert served + skipped == 150
        assert served > 20
        assert sum(server.unloads.values()) > 0
        await members[0].residence.reconcile()
        assert members[0].residence.ready == server.names.keys()


async def test_many_requests_for_one_adapter_load_it_once(redis_url: str) -> None:
    server = Server(slots=2)

    async def one(member: Member) -> None:
        async with member.using(A):
            pass

    async with sharing(server, redis_url, 3) as members:
        await asyncio.gather(*(one(member) for member in members for _ in range(30)))
    assert server.loads == {A: 1}
    assert server.violations == []
    assert server.names == {A: f"/adapters/{A}"}


async def test_least_recently_used_leaves_first_and_what_is_used_never(redis_url: str) -> None:
    server = Server(slots=2)
    async with sharing(server, redis_url, 2) as (one, other):
        async with one.using(A):
            async with other.using(B):
                assert (await other.skips(C)).why is Why.NO_SLOT
                assert other.residence.lacks_slot(C)
                assert not other.residence.lacks_slot(B)
            async with other.using(C):
                assert set(server.names) == {A, C}
        await released(one)
        async with other.using(C):
            pass
        await released(other)
        async with one.using(B):
            assert set(server.names) == {C, B}


async def released(member: Member) -> None:
    """Waits until a gateway has given its leases back."""

    async def is_idle() -> bool:
        return not member.residence._uses

    await until(is_idle)


async def test_adapter_is_evicted_before_the_next_is_loaded(redis_url: str) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 1) as (member,):
        for name in (A, B, A):
            async with member.using(name):
                assert set(server.names) == {name}
            await released(member)
    assert server.violations == []
    assert (server.loads, server.unloads) == ({A: 2, B: 1}, {A: 1, B: 1})


async def test_use_of_a_dead_gateway_runs_out_on_redis_clock(redis_url: str) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 2, lease_seconds=1) as (dead, alive):
        await dead.hold(A)
        assert (await alive.skips(B)).why is Why.NO_SLOT

        async def is_served() -> bool:
            try:
                async with alive.using(B):
                    return True
            except Skipped:
                return False

        await until(is_served)
        assert set(server.names) == {B}


async def test_use_of_a_living_gateway_is_renewed(redis_url: str) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 2, lease_seconds=1) as (holder, other), holder.using(A):
        begun = await holder.books.now()
        while await holder.books.now() < begun + 2_500:
            await holder.residence.renew()
            assert (await other.skips(B)).why is Why.NO_SLOT
            await asyncio.sleep(0.02)
    assert server.violations == []


@pytest.mark.parametrize("victim_is_gone", [False, True])
async def test_load_of_a_dead_gateway_is_taken_over(redis_url: str, victim_is_gone: bool) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 2, load_seconds=1) as (dead, alive):
        async with alive.using(A):
            pass
        await released(alive)
        granted = await dead.books.acquire(dead.replica.id, B, 1)
        assert (granted.grant, granted.victims) == (Grant.LOAD, (A,))
        if victim_is_gone:
            await server.unload(A)
        assert (await alive.books.acquire(dead.replica.id, B, 1)).grant is Grant.WAIT

        async def is_served() -> bool:
            try:
                async with alive.using(B):
                    return True
            except Skipped:
                return False

        await until(is_served)
        assert set(server.names) == {B}
        assert not await dead.books.loaded(dead.replica.id, B)
    assert server.violations == []


async def test_late_gateway_does_not_end_what_another_has_taken_over(redis_url: str) -> None:
    async with sharing(Server(slots=1), redis_url, 2, load_seconds=1) as (late, other):
        replica = late.replica.id
        await late.books.acquire(replica, A, 1)

        async def is_taken() -> bool:
            return (await other.books.acquire(replica, A, 1)).grant is Grant.LOAD

        await until(is_taken)
        assert not await late.books.loaded(replica, A)
        await late.books.failed(replica, A, True, ())
        await late.books.evicted(replica, A)
        assert await other.books.loaded(replica, A)
        assert (await other.books.acquire(replica, A, 1)).grant is Grant.READY


async def test_cancelled_request_lets_its_load_end_for_others(redis_url: str) -> None:
    server = Server(slots=1)
    server.may_load.clear()
    async with sharing(server, redis_url, 1) as (member,):
        first = asyncio.create_task(member.hold(A))
        second = asyncio.create_task(member.hold(A))
        await asyncio.wait_for(server.began.wait(), 30)
        first.cancel()
        await asyncio.wait({first})
        server.may_load.set()
        await second
        assert server.loads == {A: 1}
        member.residence.drop(A)
        await released(member)
        assert (await member.books.acquire(member.replica.id, A, 1)).grant is Grant.READY


async def test_load_that_all_have_left_ends_and_frees_its_use(redis_url: str) -> None:
    server = Server(slots=1)
    server.may_load.clear()
    async with sharing(server, redis_url, 1) as (member,):
        alone = asyncio.create_task(member.hold(A))
        await asyncio.wait_for(server.began.wait(), 30)
        alone.cancel()
        await asyncio.wait({alone})
        server.may_load.set()
        await released(member)
        assert server.loads == {A: 1}
        async with member.using(B):
            assert set(server.names) == {B}


async def test_composite_is_loaded_beside_the_request(redis_url: str) -> None:
    server = Server(slots=1)
    server.may_load.clear()
    async with sharing(server, redis_url, 1) as (member,):
        for _ in range(2):
            with pytest.raises(Skipped, match="beside this request"):
                await member.hold(A, may_wait=False)
        server.may_load.set()
        await released(member)
        await member.hold(A, may_wait=False)
        member.residence.drop(A)
    assert server.loads == {A: 1}


async def test_adapter_without_effect_is_quarantined_and_leaves_its_slot(redis_url: str) -> None:
    server = Server(slots=1)
    server.without_effect.add(A)
    async with sharing(server, redis_url, 1) as (member,):
        for _ in range(2):
            assert (await member.skips(A)).why is Why.QUARANTINED
        assert server.unloads == {A: 1}
        assert "as the base does" in member.replica.verdicts[A].reason
        async with member.using(B):
            pass


async def test_refused_load_is_left_alone_for_a_while(redis_url: str) -> None:
    server = Server(slots=1)
    server.refuses.add(A)
    async with sharing(server, redis_url, 1) as (member,):
        with pytest.raises(BackendFailed, match="rank is too large"):
            await member.hold(A)
        assert "rank is too large" in str(await member.skips(A))
        async with member.using(B):
            pass


async def test_restarted_server_is_loaded_again(redis_url: str) -> None:
    server = Server(slots=2)
    async with sharing(server, redis_url, 2) as (one, other):
        await one.hold(A)
        async with other.using(B):
            pass
        await released(other)
        server.names.clear()
        await one.residence.reconcile()
        assert one.residence.ready == set()
        async with other.using(B):
            assert B in server.names
        async with one.using(A):
            assert A in server.names
        one.residence.drop(A)
    assert server.loads == {A: 2, B: 2}


async def test_name_that_the_server_does_not_know_is_forgotten_while_in_use(redis_url: str) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 1) as (member,):
        await member.hold(A)
        server.names.clear()
        member.residence.forget(A)
        async with member.using(A):
            assert A in server.names
        member.residence.drop(A)
        await released(member)
        async with member.using(B):
            pass
    assert server.violations == []


async def test_strangers_are_adopted_while_there_are_slots_and_unloaded_beyond(redis_url: str) -> None:
    server = Server(slots=2)
    server.names = {A: "/x", B: "/x", C: "/x", "an-operators-own": "/x"}
    async with sharing(server, redis_url, 1) as (member,):
        await member.residence.reconcile()

        async def is_settled() -> bool:
            await member.residence.reconcile()
            return len(member.residence.ready) == 2 and len(server.names) == 3

        await until(is_settled)
        assert "an-operators-own" in server.names
        assert member.residence.ready < {A, B, C}
        assert sum(server.unloads.values()) == 1


async def test_list_from_before_a_load_does_not_undo_it(redis_url: str) -> None:
    async with sharing(Server(slots=2), redis_url, 1) as (member,):
        replica = member.replica.id
        since = await member.books.now()
        await member.books.acquire(replica, A, 2)
        await member.books.loaded(replica, A)
        found = await member.books.reconcile(replica, [], since, 2)
        assert (found.ready, found.adopt, found.unload) == ({A}, (), ())


async def test_list_that_arrives_after_a_load_does_not_undo_it(redis_url: str) -> None:
    server = Server(slots=1)
    async with sharing(server, redis_url, 1) as (member,):
        server.may_list.clear()
        listing = asyncio.create_task(member.residence.reconcile())
        await asyncio.wait_for(server.was_listed.wait(), 30)
        async with member.using(A):
            server.may_list.set()
            await listing
            assert member.residence.ready == {A}
            async with member.using(A):
                pass
    assert server.loads == {A: 1}


async def test_gateway_that_waited_in_vain_keeps_nothing(redis_url: str) -> None:
    async with sharing(Server(slots=1), redis_url, 2) as (one, other):
        replica = one.replica.id
        await one.books.acquire(replica, A, 1)
        assert (await other.books.acquire(replica, A, 1)).grant is Grant.WAIT
        await one.books.failed(replica, A, True, ())
        await one.books.acquire(replica, B, 1)
        assert (await other.books.acquire(replica, A, 1)).grant is Grant.FULL
        await one.books.loaded(replica, B)
        await one.books.release(replica, B)
        await one.books.acquire(replica, A, 1)
        await one.books.evicted(replica, B)
        await one.books.loaded(replica, A)
        await one.books.release(replica, A)
        assert (await one.books.acquire(replica, C, 1)).victims == (A,)


async def test_late_word_of_a_missing_adapter_does_not_undo_a_new_load(redis_url: str) -> None:
    async with sharing(Server(slots=1), redis_url, 2) as (one, other):
        replica = one.replica.id
        await one.books.acquire(replica, A, 1)
        known_at = await one.books.loaded(replica, A)
        await other.books.forget(replica, A, known_at)
        assert (await other.books.acquire(replica, A, 1)).grant is Grant.LOAD
        while await other.books.now() == known_at:
            pass
        await other.books.loaded(replica, A)
        await one.books.forget(replica, A, known_at)
        assert (await one.books.acquire(replica, A, 1)).grant is Grant.READY


async def test_without_redis_only_what_is_known_to_be_loaded_is_served(tmp_path: Path) -> None:
    port = free_port()
    server = Server(slots=1)
    async with sharing(server, valkey_url(port), 1) as (member,):
        with running(valkey_process(tmp_path / "first", port)):
            await member.hold(A)
        async with member.using(A):
            pass
        member.residence.drop(A)
        assert (await member.skips(B)).why is Why.BOOKS_AWAY
        async with member.using(A):
            assert server.loads == {A: 1}
        with running(valkey_process(tmp_path / "second", port)):

            async def is_adopted() -> bool:
                await member.residence.reconcile()
                try:
                    return (await member.books.acquire(member.replica.id, A, 1)).grant is Grant.READY
                except BooksAway:
                    return False

            await until(is_adopted)
            assert server.violations == []


async def test_redis_that_goes_away_in_a_load_leaves_books_that_can_be_put_right(tmp_path: Path) -> None:
    port = free_port()
    server = Server(slots=1)
    async with sharing(server, valkey_url(port), 1) as (member,):
        with running(valkey_process(tmp_path / "first", port)):
            server.may_load.clear()
            asked = asyncio.create_task(member.skips(A))
            await asyncio.wait_for(server.began.wait(), 30)
        server.may_load.set()
        assert (await asked).why is Why.BOOKS_AWAY
        assert set(server.names) == {A}
        with running(valkey_process(tmp_path / "second", port)):

            async def is_served() -> bool:
                await member.residence.reconcile()
                try:
                    async with member.using(A):
                        return True
                except Skipped:
                    return False

            await until(is_served)
    assert server.violations == []


async def test_gateway_without_books_serves_what_the_server_holds() -> None:
    server = Server(slots=1)
    server.names = {A: "/x", B: "/x"}
    server.without_effect.add(B)
    async with sharing(server, None) as (member,):

        async def is_known() -> bool:
            await member.residence.reconcile()
            return member.residence.ready == {A}

        await until(is_known)
        async with member.using(A):
            pass
        assert (await member.skips(C)).why is Why.NOT_RESIDENT
        assert (await member.skips(B)).why is Why.QUARANTINED
    assert (server.loads, server.unloads) == ({}, {})
