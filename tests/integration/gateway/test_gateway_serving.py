"""What the gateway asks of backends, says in its answers, and does when parts fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorauter.errors import (
    Exhausted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from lorauter.gateway.v1 import gateway_pb2 as pb
from lorauter.router.v1 import router_pb2

PROMPT = {"inputs": "what is 1 plus 2"}
Stand = Any


async def test_weighted_set_reaches_the_engine_by_digest(stand: Stand) -> None:
    answer = await stand.post("/generate", {**PROMPT, "parameters": {"max_new_tokens": 4}})
    assert answer.json() == {"generated_text": "Hello world"}
    parameters = stand.engine.bodies[0]["parameters"]
    assert parameters["adapters"] == [
        {"id": "sha256:" + "a" * 64, "weight": 0.62},
        {"id": "sha256:" + "b" * 64, "weight": 0.38},
    ]
    assert parameters["do_sample"] is False
    assert parameters["max_new_tokens"] == 4
    assert stand.router.requests[0].query == PROMPT["inputs"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_headers_say_what_served(stand: Stand, path: str) -> None:
    headers = (await stand.post(path, PROMPT)).headers
    assert headers["x-lorauter-decision"] == "d1"
    assert headers["x-lorauter-adapters"] == 'adds;w=0.62, "2adds";w=0.38'
    assert headers["x-lorauter-composition"] == "exact"
    assert headers["x-lorauter-backend"] == "engine-0"


async def test_grpc_answer_carries_decision_served_and_usage(stand: Stand) -> None:
    answer = await stand.client.generate("hi")
    assert answer.text == "Hello world"
    assert answer.decision == stand.router.decision
    assert answer.served.composition == pb.COMPOSITION_EXACT
    assert [a.adapter_id for a in answer.served.adapters] == ["adds", "2adds"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)
    assert answer.finish_reason == pb.FINISH_REASON_EOS_TOKEN


async def test_grpc_stream_begins_with_what_serves_and_ends_with_usage(stand: Stand) -> None:
    pieces = [piece async for piece in stand.client.generate_stream("hi")]
    assert pieces[0].served.backend_id == "engine-0"
    assert "".join(piece.text for piece in pieces) == "Hello world"
    assert pieces[-1].usage.completion_tokens == 3
    assert not any(piece.HasField("served") for piece in pieces[1:])


async def test_conversation_reaches_the_backend_as_messages(stand: Stand) -> None:
    answer = await stand.client.generate(
        [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    )
    assert answer.text == "Hello world"
    body = stand.engine.bodies[0]
    assert stand.engine.paths == ["/v1/chat/completions"]
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert body["temperature"] == 0.0
    assert len(body["adapters"]) == 2
    assert [m.content for m in stand.router.requests[0].messages] == ["s", "u"]


async def test_pin_is_served_at_weight_one_without_a_decision(stand: Stand) -> None:
    answer = await stand.client.generate("hi", adapter="adds@3")
    assert not answer.HasField("decision")
    assert answer.served.composition == pb.COMPOSITION_SINGLE
    assert (answer.served.adapters[0].adapter_id, answer.served.adapters[0].version) == ("adds", 3)
    assert stand.engine.bodies[0]["parameters"]["adapters"] == [{"id": "sha256:" + "a" * 64, "weight": 1.0}]
    assert stand.router.requests == []


async def test_base_is_served_without_adapters_and_without_the_router(stand: Stand) -> None:
    await stand.stop_router()
    answer = await stand.client.generate("hi", base=True)
    assert answer.served.composition == pb.COMPOSITION_BASE
    assert stand.engine.bodies[0]["parameters"]["adapters"] == []


async def test_base_is_served_when_the_decision_says_so(stand: Stand) -> None:
    stand.router.decision.action = router_pb2.ROUTE_ACTION_BASE
    del stand.router.decision.adapters[:]
    answer = await stand.post("/generate", PROMPT)
    assert answer.headers["x-lorauter-composition"] == "base"
    assert answer.headers["x-lorauter-adapters"] == "base;w=1.0"
    assert answer.headers["x-lorauter-decision"] == "d1"


async def test_query_is_refused_when_the_decision_says_so(stand: Stand) -> None:
    stand.router.decision.action = router_pb2.ROUTE_ACTION_REFUSE
    stand.router.decision.action_reason = "unlike all tasks"
    with pytest.raises(FailedPrecondition, match="unlike all tasks") as caught:
        await stand.client.generate("hi")
    assert caught.value.reason == "QUERY_REFUSED"
    assert stand.engine.bodies == []


async def test_pin_is_refused_with_the_routers_reason(stand: Stand) -> None:
    with pytest.raises(FailedPrecondition) as retired:
        await stand.client.generate("hi", adapter="retired")
    assert retired.value.metadata == {"successor": "adds"}
    with pytest.raises(NotFound) as unknown:
        await stand.client.generate("hi", adapter="nowhere")
    assert unknown.value.reason == "UNKNOWN_ADAPTER"


async def test_pin_is_found_in_any_pool_when_there_are_several(stand: Stand) -> None:
    stand.router.pools = ["aaa", "demo", "zzz"]
    await wait_for_pools(stand, 3)
    assert (await stand.client.generate("hi", adapter="adds")).served.adapters[0].adapter_id == "adds"
    with pytest.raises(InvalidArgument) as caught:
        await stand.client.generate("hi", base=True)
    assert caught.value.reason == "POOL_REQUIRED"
    with pytest.raises(NotFound) as unknown:
        await stand.client.generate("hi", base=True, pool="nowhere")
    assert unknown.value.reason == "UNKNOWN_POOL"


async def wait_for_pools(stand: Stand, count: int) -> None:
    async def seen() -> bool:
        models = (await stand.http.get(stand.url + "/v1/models")).json()["data"]
        return sum(model["id"].startswith("auto:") for model in models) == count

    await stand.until(seen)


async def test_router_away_is_an_error_and_never_the_base(stand: Stand) -> None:
    await stand.stop_router()
    with pytest.raises(Unavailable) as caught:
        await stand.client.generate("hi")
    assert caught.value.reason == "ROUTER_UNAVAILABLE"
    assert stand.engine.bodies == []

    async def is_unready() -> bool:
        return not await stand.is_ready()

    await stand.until(is_unready)
    assert (await stand.http.get(stand.url + "/healthz")).status_code == 200


async def test_no_backend_is_typed_when_the_last_one_goes(stand: Stand) -> None:
    stand.router.backends.clear()

    async def is_refused() -> bool:
        answer = await stand.post("/generate", PROMPT)
        return answer.status_code == 503 and "no active backend" in answer.json()["error"]

    await stand.until(is_refused)


async def test_backends_take_turns(pair: Stand) -> None:
    used = [(await pair.client.generate("hi")).served.backend_id for _ in range(4)]
    assert sorted(used) == ["engine-0", "engine-0", "engine-1", "engine-1"]


async def test_draining_backend_gets_nothing(pair: Stand) -> None:
    pair.router.backends[0].draining = True

    async def is_left_out() -> bool:
        return {(await pair.client.generate("hi")).served.backend_id for _ in range(4)} == {"engine-1"}

    await pair.until(is_left_out)


@pytest.mark.parametrize("fault", [(503, "healthcheck", "unhealthy"), (429, "overloaded", "full")])
async def test_another_backend_serves_when_one_refuses_before_the_first_token(
    pair: Stand, fault: Any
) -> None:
    pair.engines[0].script.extend([fault] * 2)
    for _ in range(2):
        assert (await pair.client.generate("hi")).served.backend_id == "engine-1"
        pieces = [piece async for piece in pair.client.generate_stream("hi")]
        assert pieces[0].served.backend_id == "engine-1"
    assert pair.engines[0].bodies


async def test_another_backend_serves_when_one_is_gone(pair: Stand) -> None:
    pair.router.backends.insert(
        0, router_pb2.Backend(backend_id="gone", kind="engine", url="http://127.0.0.1:1")
    )

    async def was_noticed() -> bool:
        assert (await pair.client.generate("hi")).text == "Hello world"
        name = "lorauter_gateway_backend_failures_total"
        by_a_request = await pair.metric(name, backend="gone", reason="BACKEND_UNREACHABLE")
        by_a_probe = await pair.metric("lorauter_gateway_replicas", backend="gone", state="ejected")
        return by_a_request + by_a_probe > 0

    await pair.until(was_noticed)


async def test_second_failure_is_the_callers_error(pair: Stand) -> None:
    for engine in pair.engines:
        engine.script.append((429, "overloaded", "full"))
    with pytest.raises(Exhausted) as caught:
        await pair.client.generate("hi")
    assert caught.value.reason == "BACKEND_OVERLOADED"
    assert caught.value.metadata["retry_after_seconds"] == "3"
    assert len(pair.engines[0].bodies) == len(pair.engines[1].bodies) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [((424, "generation", "cuda"), "GENERATION_FAILED"), ((500, "", "bug"), "BACKEND_FAILED")],
)
async def test_failed_generation_is_not_tried_again(pair: Stand, fault: Any, reason: str) -> None:
    for engine in pair.engines:
        engine.script.append(fault)
    with pytest.raises(Unavailable) as caught:
        await pair.client.generate("hi")
    assert caught.value.reason == reason
    assert sum(len(engine.bodies) for engine in pair.engines) == 1


async def test_callers_fault_is_typed_and_not_tried_again(pair: Stand) -> None:
    message = "`inputs` tokens + `max_new_tokens` must be <= 256. Given: 300 `inputs` tokens"
    for engine in pair.engines:
        engine.script.append((422, "validation", message))
    with pytest.raises(InvalidArgument) as caught:
        await pair.client.generate("hi")
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert sum(len(engine.bodies) for engine in pair.engines) == 1


async def test_stream_moves_to_another_backend_when_overload_comes_as_an_event(pair: Stand) -> None:
    pair.engines[0].script.append("overloaded event")
    for _ in range(2):
        pieces = [piece async for piece in pair.client.generate_stream("hi")]
        assert "".join(piece.text for piece in pieces) == "Hello world"


@pytest.mark.parametrize("fault", ["short", "break", "error event"])
@pytest.mark.parametrize("prompt", ["raw", "chat"])
async def test_broken_stream_is_an_error_after_the_first_token(stand: Stand, fault: str, prompt: str) -> None:
    stand.engine.script.append(fault)
    pieces = []

    async def read() -> None:
        async for piece in stand.client.generate_stream(
            "hi" if prompt == "raw" else [{"role": "user", "content": "hi"}]
        ):
            pieces.append(piece.text)

    with pytest.raises(Unavailable) as caught:
        await read()
    assert caught.value.reason == "STREAM_BROKEN"
    assert "".join(pieces) == "Hello wor"
    assert len(stand.engine.bodies) == 1


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_answer_of_another_protocol_is_typed(stand: Stand, path: str) -> None:
    stand.engine.script.append("garbage")
    answer = await stand.post(path, PROMPT)
    assert answer.status_code == 503
    assert "not of its protocol" in answer.json()["error"]


async def test_faulty_backend_is_left_out_until_it_is_healthy_again(pair: Stand) -> None:
    first = pair.engines[0]
    first.is_healthy = False
    first.script.extend([(503, "healthcheck", "unhealthy")] * 50)

    async def is_ejected() -> bool:
        assert (await pair.client.generate("hi")).served.backend_id == "engine-1"
        found = (await pair.http.get(pair.url + "/v1/backends")).json()["replicas"]
        return [replica["state"] for replica in found] == ["ejected", "healthy"]

    await pair.until(is_ejected)
    tried = len(first.bodies)
    for _ in range(6):
        await pair.client.generate("hi")
    assert len(first.bodies) == tried
    first.script.clear()
    first.is_healthy = True

    async def is_back() -> bool:
        return (await pair.client.generate("hi")).served.backend_id == "engine-0"

    await pair.until(is_back)


async def test_too_many_generations_are_refused_at_once(start: Callable[..., Any]) -> None:
    async with start(max_concurrent_requests=1) as stand:
        stand.engine.script.append("endless")
        stream = stand.client.generate_stream("hi")
        await anext(stream)
        with pytest.raises(Exhausted) as caught:
            await stand.client.generate("hi")
        assert caught.value.reason == "GATEWAY_FULL"
        answer = await stand.post("/v1/completions", {"model": "auto", "prompt": "x"})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        await stream.aclose()
        await stand.until_engine_stopped()

        async def has_room() -> bool:
            return (await stand.post("/generate", PROMPT)).status_code == 200

        await stand.until(has_room)


async def test_own_time_limit_is_typed(start: Callable[..., Any]) -> None:
    async with start(request_timeout_seconds=1) as stand:
        stand.engine.script.extend(["hang", "endless"])
        answer = await stand.post("/generate", PROMPT)
        assert (answer.status_code, answer.json()["error_type"]) == (504, "timeout")
        streamed = await stand.post("/generate_stream", PROMPT)
        assert streamed.status_code == 200
        assert '"error_type":"timeout"' in streamed.text.splitlines()[-2]


async def test_metrics_count_requests_by_route_and_outcome(stand: Stand) -> None:
    name = "lorauter_gateway_requests_total"
    before = await stand.metric(name, route="tgi", outcome="ok")
    await stand.post("/generate", PROMPT)
    await stand.post("/generate_stream", PROMPT)
    stand.engine.script.append((422, "validation", "bad"))
    await stand.post("/generate", PROMPT)
    assert await stand.metric(name, route="tgi", outcome="ok") == before + 2
    assert await stand.metric(name, route="tgi", outcome="REFUSED_BY_BACKEND") >= 1
    assert await stand.metric("lorauter_gateway_overhead_seconds_count") >= 3
    assert await stand.metric("lorauter_gateway_in_flight") == 0
    stand.engine.script.append((503, "", "x"))
    await stand.post("/generate", PROMPT)
    failures = await stand.metric(
        "lorauter_gateway_backend_failures_total", backend="engine-0", reason="BACKEND_UNAVAILABLE"
    )
    assert failures >= 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "EXCLUSIVE_FIELDS"),
        ({}, "MISSING_FIELD"),
        ({"messages": [{"role": "robot", "content": "y"}]}, "INVALID_FIELD"),
        ({"prompt": "x", "parameters": {"temperature": 0}}, "INVALID_FIELD"),
        ({"prompt": "x", "parameters": {"max_new_tokens": 0}}, "INVALID_FIELD"),
        ({"prompt": "x", "parameters": {"stop": ["a"] * 5}}, "INVALID_FIELD"),
    ],
)
async def test_grpc_refuses_bad_requests_with_a_reason(stand: Stand, fields: Any, reason: str) -> None:
    transport = stand.client._gateway
    with pytest.raises(InvalidArgument) as caught:
        await transport.unary(
            "/lorauter.gateway.v1.GatewayService/Generate",
            pb.GenerateRequest(**fields),
            pb.GenerateResponse,
            idempotent=False,
        )
    assert caught.value.reason == reason
    assert "field" in caught.value.metadata


async def test_stop_text_is_cut_off_over_grpc(stand: Stand) -> None:
    stand.engine.finish_reason = "stop_sequence"
    assert (await stand.client.generate("hi", stop=["orld"])).text == "Hello w"
    pieces = [piece.text async for piece in stand.client.generate_stream("hi", stop=["orld"])]
    assert "".join(pieces) == "Hello w"
