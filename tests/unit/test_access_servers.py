"""Servers with a gate: what is let through without a key, and what is not even looked at."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorauter.access import Caller, Scope, caller, make_key
from lorauter.errors import Unauthenticated
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.access import OPEN_PATHS, presented_in
from lorauter.server.grpc import GrpcServer
from lorauter.server.http import create_app

KEY = make_key()


class OneKey:
    """A Gate that knows one key."""

    async def admit(self, authorization: str) -> Caller:
        if presented_in(authorization).digest != presented_in(f"Bearer {KEY}").digest:
            raise Unauthenticated("KEY_INVALID", "another key")
        return Caller("t", frozenset({Scope.INVOKE}), "k")


async def ready() -> str:
    return ""


async def sent(app: Any, path: str, key: str = "") -> tuple[int, list[str]]:
    """Posts a body that must not be read; returns the status and what was read of it."""
    read: list[str] = []
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        read.append("body")
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    headers = [(b"content-type", b"application/json")]
    headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": headers, "asgi": {"version": "3.0"}}, receive, send)
    return answers[0]["status"], read


async def test_body_is_not_read_before_its_key_is_good() -> None:
    app = create_app("test", ready, 1024, gate=OneKey(), scope_for=lambda _, path: SCOPES[path])

    @app.post("/here")
    @app.post("/read")
    async def here(body: dict[str, Any]) -> str:
        return caller().tenant

    assert await sent(app, "/here") == (401, [])
    assert await sent(app, "/here", make_key()) == (401, [])
    assert await sent(app, "/read", KEY) == (403, [])
    assert await sent(app, "/nobody", KEY) == (403, [])
    assert await sent(app, "/here", KEY) == (200, ["body"])


SCOPES = {"/here": Scope.INVOKE, "/read": Scope.READ, "/nobody": None}


def test_no_open_path_is_one_that_shows_data() -> None:
    assert {"/", "/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"} == OPEN_PATHS


class Router:
    async def Route(self, request: Any, context: Any) -> Any:
        return router_pb2.RouteResponse(decision_id=caller().tenant)

    GetSnapshot = ListServableAdapters = Replay = ResolveAdapter = RouteBatch = Route


@pytest.mark.parametrize("announced", [True, False])
async def test_only_announced_services_answer_and_health_needs_no_key(announced: bool) -> None:
    server = GrpcServer(gate=OneKey())
    router_pb2_grpc.add_RouterServiceServicer_to_server(cast(Any, Router()), server.server)
    if announced:
        server.announce(router_pb2.DESCRIPTOR.services_by_name["RouterService"])
    port = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = (await health.Check(health_pb2.HealthCheckRequest())).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        router: Any = router_pb2_grpc.RouterServiceStub(channel)
        codes = []
        for metadata in ((), (("authorization", f"Bearer {KEY}"),)):
            try:
                answer = await router.Route(router_pb2.RouteRequest(query="q"), metadata=metadata)
                codes.append(answer.decision_id)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
    await server.stop(0)
    assert codes == ["UNAUTHENTICATED", "t" if announced else "PERMISSION_DENIED"]
