"""The client against real gRPC servers built from the generated servicers and the server kit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lorauter import AsyncClient, Client
from lorauter.client import NO_RETRY, RetryPolicy
from lorauter.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from lorauter.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from lorauter.registry.v1 import registry_pb2, registry_pb2_grpc
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.grpc import GrpcServer

QUICK = RetryPolicy(attempts=4, first_seconds=0.001, longest_seconds=0.005)


class RegistryPeer(registry_pb2_grpc.RegistryServiceServicer):
    """Speaks the registry's protocol over a dictionary, and fails as often as it is told to."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.request_ids: list[str] = []
        self.tasks: dict[str, registry_pb2.Task] = {}
        self.examples: list[registry_pb2.ValidationExample] = []
        self.chunks: list[int] = []

    def _enter(self, rpc: str) -> None:
        self.calls[rpc] += 1
        if self.failures[rpc]:
            self.failures[rpc] -= 1
            raise Unavailable("DATABASE_UNAVAILABLE", "the database is away: retry later")

    async def CreateTask(self, request: registry_pb2.CreateTaskRequest, context: Any) -> registry_pb2.Task:
        self.request_ids.append(request.request_id)
        self._enter("CreateTask")
        self.tasks[request.id] = registry_pb2.Task(id=request.id, pool=request.pool, metric=request.metric)
        return self.tasks[request.id]

    async def GetTask(self, request: registry_pb2.GetTaskRequest, context: Any) -> registry_pb2.Task:
        self._enter("GetTask")
        if request.id not in self.tasks:
            raise NotFound("TASK_NOT_FOUND", f"there is no task {request.id!r}", task_id=request.id)
        return self.tasks[request.id]

    async def UpdateTask(self, request: registry_pb2.UpdateTaskRequest, context: Any) -> registry_pb2.Task:
        raise Conflict("ETAG_MISMATCH", "somebody changed it")

    async def DeleteTask(self, request: registry_pb2.DeleteTaskRequest, context: Any) -> Any:
        await asyncio.Event().wait()

    async def ListTasks(self, request: registry_pb2.ListTasksRequest, context: Any) -> Any:
        self._enter("ListTasks")
        ids = sorted(self.tasks)
        start = int(request.page_token or 0)
        end = start + (request.page_size or 2)
        token = str(end) if end < len(ids) else ""
        return registry_pb2.ListTasksResponse(
            tasks=[self.tasks[task_id] for task_id in ids[start:end]], next_page_token=token
        )

    async def PutValidationSet(self, request_iterator: Any, context: Any) -> registry_pb2.Task:
        self.examples, self.chunks = [], []
        async for message in request_iterator:
            if message.HasField("header"):
                self.request_ids.append(message.header.request_id)
                task_id = message.header.task_id
                self._enter("PutValidationSet")
            else:
                self.examples += message.chunk.examples
                self.chunks.append(len(message.chunk.examples))
                if any(not example.input for example in message.chunk.examples):
                    raise InvalidArgument("EMPTY_INPUT", "example 0 has no input")
        return registry_pb2.Task(id=task_id, version=1, example_count=len(self.examples))

    async def WatchOperation(
        self, request: registry_pb2.WatchOperationRequest, context: Any
    ) -> AsyncIterator[registry_pb2.Operation]:
        for done in range(3):
            yield registry_pb2.Operation(id=request.id, done=done, total=2)
        if request.id == "denied":
            raise PermissionDenied("NOT_YOURS", "this operation is another tenant's")


class RouterPeer(router_pb2_grpc.RouterServiceServicer):
    """Answers every query with the request itself."""

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        text = request.query or "|".join(f"{m.role}:{m.content}" for m in request.messages)
        return router_pb2.RouteResponse(decision_id=text, pool=request.pool, strategy=request.strategy)


class GatewayPeer(gateway_pb2_grpc.GatewayServiceServicer):
    """Streams until it is cancelled."""

    def __init__(self) -> None:
        self.calls = 0
        self.last = gateway_pb2.GenerateRequest()
        self.cancelled = asyncio.Event()

    async def Generate(self, request: gateway_pb2.GenerateRequest, context: Any) -> Any:
        self.calls += 1
        self.last = request
        if request.prompt == "away":
            raise Unavailable("NO_BACKEND", "no backend of the pool answers")
        return gateway_pb2.GenerateResponse(text=request.prompt.upper())

    async def GenerateStream(self, request: gateway_pb2.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield gateway_pb2.GenerateStreamResponse(text="x")
                await asyncio.sleep(0.001)
        finally:
            self.cancelled.set()


class Peers:
    """The three peers and the address that they share."""

    def __init__(self) -> None:
        self.registry = RegistryPeer()  # type: ignore[abstract]
        self.router = RouterPeer()  # type: ignore[abstract]
        self.gateway = GatewayPeer()
        self.address = ""

    def addresses(self) -> dict[str, Any]:
        return {"registry": self.address, "router": self.address, "gateway": self.address}


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    server = GrpcServer()
    found = Peers()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(found.registry, server.server)
    router_pb2_grpc.add_RouterServiceServicer_to_server(found.router, server.server)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(found.gateway, server.server)
    found.address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    yield found
    await server.stop(0)


@pytest.fixture
async def client(peers: Peers) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(**peers.addresses(), retry=QUICK) as found:
        yield found


async def blocking(peers: Peers, work: Callable[[Client], Any], **options: Any) -> Any:
    """Runs ``work`` with a blocking client on a thread, so that the peers' loop goes on."""

    def run() -> Any:
        with Client(**peers.addresses(), **{"retry": QUICK, **options}) as found:
            return work(found)

    return await asyncio.to_thread(run)


async def test_error_has_the_servers_class_reason_and_metadata(peers: Peers, client: AsyncClient) -> None:
    with pytest.raises(NotFound) as caught:
        await client.registry.get_task("nowhere")
    assert (caught.value.reason, caught.value.metadata) == ("TASK_NOT_FOUND", {"task_id": "nowhere"})
    assert "nowhere" in caught.value.message
    with pytest.raises(Conflict):
        await client.registry.update_task(id="a")
    with pytest.raises(NotFound) as blocked:
        await blocking(peers, lambda c: c.registry.get_task("nowhere"))
    assert blocked.value.reason == "TASK_NOT_FOUND"


async def test_write_carries_one_request_id_over_all_tries(peers: Peers, client: AsyncClient) -> None:
    peers.registry.failures["CreateTask"] = 2
    await client.registry.create_task(id="a", pool="p", metric="exact_match")
    assert peers.registry.calls["CreateTask"] == 3
    assert len(set(peers.registry.request_ids)) == 1
    assert len(peers.registry.request_ids[0]) == 36
    peers.registry.failures["CreateTask"] = 2
    await blocking(peers, lambda c: c.registry.create_task(id="b", request_id="mine"))
    assert peers.registry.request_ids[-3:] == ["mine"] * 3


async def test_retries_end_when_attempts_are_used_up(peers: Peers, client: AsyncClient) -> None:
    peers.registry.failures["GetTask"] = 100
    with pytest.raises(Unavailable) as caught:
        await client.registry.get_task("a")
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert peers.registry.calls["GetTask"] == QUICK.attempts
    with pytest.raises(Unavailable):
        await blocking(peers, lambda c: c.registry.get_task("a"), retry=NO_RETRY)
    assert peers.registry.calls["GetTask"] == QUICK.attempts + 1


async def test_generation_is_not_retried_when_unavailable(peers: Peers, client: AsyncClient) -> None:
    with pytest.raises(Unavailable):
        await client.generate("away")
    with pytest.raises(Unavailable):
        await blocking(peers, lambda c: c.generate("away"))
    assert peers.gateway.calls == 2


async def test_deadline_ends_a_call_when_the_server_hangs(peers: Peers, client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.with_timeout(0.05).registry.delete_task(id="a")
    with pytest.raises(DeadlineExceeded):
        await blocking(peers, lambda c: c.registry.delete_task(id="a"), timeout_seconds=0.05)


async def test_unavailable_is_typed_when_nothing_listens() -> None:
    async with AsyncClient(registry="127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(Unavailable) as caught:
            await client.registry.get_task("a")
    assert caught.value.reason == "UNAVAILABLE"


async def test_listing_yields_every_item_over_pages(peers: Peers, client: AsyncClient) -> None:
    for number in range(5):
        await client.registry.create_task(id=f"t{number}")
    expected = [f"t{number}" for number in range(5)]
    assert [task.id async for task in client.registry.list_tasks()] == expected
    assert peers.registry.calls["ListTasks"] == 3
    assert (
        await blocking(peers, lambda c: [task.id for task in c.registry.list_tasks(page_size=3)]) == expected
    )


async def test_validation_set_is_cut_into_chunks_when_large(peers: Peers, client: AsyncClient) -> None:
    task = await client.registry.put_validation_set("a", [(f"in {n}", "out") for n in range(2500)])
    assert task.example_count == 2500
    assert peers.registry.chunks == [1000, 1000, 500]
    assert [e.input for e in peers.registry.examples[:2]] == ["in 0", "in 1"]
    long = [{"input": "x" * 65_000, "target": "y"} for _ in range(40)]
    await blocking(peers, lambda c: c.registry.put_validation_set("a", long))
    assert sum(peers.registry.chunks) == 40
    assert max(peers.registry.chunks) * 65_000 < 1024 * 1024


async def test_validation_set_is_sent_again_only_when_it_can_be_read_again(
    peers: Peers, client: AsyncClient
) -> None:
    peers.registry.failures["PutValidationSet"] = 1
    await client.registry.put_validation_set("a", [("x", "y")])
    assert peers.registry.request_ids[0] == peers.registry.request_ids[1]
    peers.registry.failures["PutValidationSet"] = 1
    with pytest.raises(Unavailable):
        await client.registry.put_validation_set("a", iter([("x", "y")]))
    peers.registry.failures["PutValidationSet"] = 1
    await blocking(peers, lambda c: c.registry.put_validation_set("a", [("x", "y")]))


async def test_upload_raises_the_callers_own_error_when_reading_fails(
    peers: Peers, client: AsyncClient
) -> None:
    def broken() -> Any:
        yield ("a", "b")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await client.registry.put_validation_set("a", broken())
    with pytest.raises(OSError, match="disk"):
        await blocking(peers, lambda c: c.registry.put_validation_set("a", broken()))


async def test_upload_raises_the_servers_error_when_it_stops_reading(
    peers: Peers, client: AsyncClient
) -> None:
    examples = [("", "y")] + [("x" * 1000, "y")] * 5000
    for _ in range(25):  # a status that came amid a write was lost in one of five calls
        with pytest.raises(InvalidArgument) as caught:
            await client.registry.put_validation_set("a", examples)
        assert caught.value.reason == "EMPTY_INPUT"
    with pytest.raises(InvalidArgument):
        await blocking(peers, lambda c: c.registry.put_validation_set("a", examples))


async def test_watch_yields_until_the_operation_ends(peers: Peers, client: AsyncClient) -> None:
    assert [o.done async for o in client.registry.watch_operation("o")] == [0, 1, 2]
    assert await blocking(peers, lambda c: [o.done for o in c.registry.watch_operation("o")]) == [0, 1, 2]
    with pytest.raises(PermissionDenied):
        [o async for o in client.registry.watch_operation("denied")]


async def test_route_takes_text_and_conversations(peers: Peers, client: AsyncClient) -> None:
    answer = await client.route("hello", pool="p", strategy="paper")
    assert (answer.decision_id, answer.pool, answer.strategy) == ("hello", "p", "paper")
    answer = await blocking(peers, lambda c: c.route([{"role": "user", "content": "hi"}]))
    assert answer.decision_id == "user:hi"


async def test_generate_passes_pins_and_sampling_on(peers: Peers, client: AsyncClient) -> None:
    answer = await client.generate("hi", adapter="a@2", seed=7, stop=["x"], routing={"max_adapters": 1})
    assert answer.text == "HI"
    last = peers.gateway.last
    assert (last.adapter, last.parameters.seed, last.routing.max_adapters) == ("a@2", 7, 1)
    assert not last.parameters.HasField("temperature")
    await blocking(peers, lambda c: c.generate("hi", base=True))
    assert peers.gateway.last.WhichOneof("target") == "base"
    with pytest.raises(InvalidArgument, match="not both"):
        await client.generate("hi", base=True, adapter="a")


async def test_closing_a_stream_cancels_the_call(peers: Peers, client: AsyncClient) -> None:
    stream = client.generate_stream("hi")
    assert (await anext(stream)).text == "x"
    await stream.aclose()
    await asyncio.wait_for(peers.gateway.cancelled.wait(), 30)
    peers.gateway.cancelled.clear()

    def first(c: Client) -> None:
        pieces = c.generate_stream("hi")
        next(pieces)
        pieces.close()

    await blocking(peers, first)
    await asyncio.wait_for(peers.gateway.cancelled.wait(), 30)


async def test_addresses_come_from_the_environment_when_not_passed(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAUTER_ROUTER_ADDRESS", peers.address)
    async with AsyncClient() as client:
        assert (await client.route("x")).decision_id == "x"
        with pytest.raises(InvalidArgument) as caught:
            await client.registry.get_task("a")
    assert caught.value.reason == "ADDRESS_MISSING"
    assert "LORAUTER_REGISTRY_ADDRESS" in caught.value.message
