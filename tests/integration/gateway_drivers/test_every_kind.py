"""What all drivers have in common: answers, streams that stop, and faults that say whose they are."""

from __future__ import annotations

import asyncio
import json

import pytest

from lorauter.errors import LorauterError, UnprocessableRequest
from lorauter_gateway.adapters import exchange
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.adapters.sse import MAX_EVENT_BYTES
from lorauter_gateway.domain.model import FinishReason, Usage
from lorauter_gateway.ports import BackendFailed
from tests.integration.gateway_drivers.conftest import Protocol, raw
from tests.integration.gateway_drivers.peer import Peer, Reply, events, whole


async def failure(doing) -> BackendFailed:
    with pytest.raises(BackendFailed) as caught:
        await doing
    return caught.value


def flags(failed: BackendFailed) -> tuple[str, bool, bool]:
    return failed.error.reason, failed.is_fault, failed.try_elsewhere


async def test_whole_answer(protocol: Protocol, peer: Peer, driver) -> None:
    peer.play(protocol.path, protocol.answer)
    answer = await driver(protocol.kind).generate(raw())
    assert (answer.text, answer.finish_reason, answer.usage) == (
        "Hi you", FinishReason.EOS_TOKEN, Usage(4, 3),
    )  # fmt: skip
    json.dumps(answer.details, allow_nan=False)
    assert {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"} <= answer.details.keys()


async def test_stream_comes_in_pieces_and_ends_with_the_whole(protocol: Protocol, peer: Peer, driver) -> None:
    peer.play(protocol.stream_path, events(*protocol.tokens, *protocol.ending))
    pieces = [piece async for piece in await driver(protocol.kind).stream(raw())]
    assert "".join(piece.text for piece in pieces) == "Hi you"
    assert [piece.finish is not None for piece in pieces] == [False, False, True]
    last = pieces[-1].finish
    assert (last.text, last.finish_reason, last.usage) == ("Hi you", FinishReason.EOS_TOKEN, Usage(4, 3))
    json.dumps(last.details, allow_nan=False)


async def test_stream_is_read_however_it_is_cut_and_with_comments(
    protocol: Protocol, peer: Peer, driver
) -> None:
    usual = b"".join(events(*protocol.tokens, *protocol.ending).parts)
    parts = [b": keep-alive\n\n", *(bytes([byte]) for byte in usual.replace(b"data:", b"data: "))]
    peer.play(protocol.stream_path, Reply(parts))
    pieces = [piece async for piece in await driver(protocol.kind).stream(raw())]
    assert "".join(piece.text for piece in pieces) == "Hi you"


async def test_connection_is_used_again_after_an_answer(protocol: Protocol, peer: Peer, driver) -> None:
    peer.play(protocol.stream_path, events(*protocol.tokens, *protocol.ending))
    client = driver(protocol.kind)
    for _ in range(3):
        pieces = await client.stream(raw())
        assert len([piece async for piece in pieces]) == 3
        await pieces.aclose()
    peer.play(protocol.path, whole({"error": "full"}, 429), protocol.answer)
    await failure(client.generate(raw()))
    await client.generate(raw())
    assert peer.connections == 1


async def test_closing_a_stream_closes_the_connection(protocol: Protocol, peer: Peer, driver) -> None:
    peer.play(protocol.stream_path, events(protocol.tokens[0], then="wait"))
    pieces = await driver(protocol.kind).stream(raw())
    assert (await anext(pieces)).text == "Hi"
    await pieces.aclose()
    await peer.left()
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


@pytest.mark.parametrize("streams", [False, True])
async def test_cancelling_closes_the_connection(
    protocol: Protocol, peer: Peer, driver, streams: bool
) -> None:
    path = protocol.stream_path if streams else protocol.path
    for sent in (Reply(then="wait", raw=b"HTTP/1.1 200 OK\r\n"), Reply(then="wait")):
        peer.gone.clear()
        peer.waits.clear()
        peer.play(path, sent)
        client = driver(protocol.kind)
        task = asyncio.ensure_future(client.stream(raw()) if streams else client.generate(raw()))
        await peer.waiting()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.left()


async def test_nobody_there(protocol: Protocol, connections: Connections) -> None:
    async with Peer() as gone:
        pass
    client = KINDS[protocol.kind].make(gone.url, connections)
    for doing in (
        client.generate(raw()),
        client.stream(raw()),
        client.limits(),
        client.read("a", [], "", "b"),
    ):
        assert flags(await failure(doing)) == ("BACKEND_UNREACHABLE", True, True)
    assert not await client.is_healthy()


@pytest.mark.parametrize("sent", [Reply(raw=b"HTTP/1.1 200 OK\r\n"), Reply([b'{"gener'], then="cut")])
async def test_connection_that_breaks(protocol: Protocol, peer: Peer, driver, sent: Reply) -> None:
    peer.play(protocol.path, sent)
    assert flags(await failure(driver(protocol.kind).generate(raw()))) == ("BACKEND_BROKE_OFF", True, True)
    if sent.raw:
        peer.play(protocol.stream_path, sent)
        found = await failure(driver(protocol.kind).stream(raw()))
        assert flags(found) == ("BACKEND_BROKE_OFF", True, True)


async def test_silence_is_bounded(protocol: Protocol, peer: Peer) -> None:
    peer.play(protocol.path, Reply(then="wait"))
    async with Connections(request_timeout_seconds=0.1, connect_timeout_seconds=5) as impatient:
        client = KINDS[protocol.kind].make(peer.url, impatient)
        assert flags(await failure(client.generate(raw()))) == ("BACKEND_BROKE_OFF", True, True)
    await peer.left()


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"choices": [], "details": null}'],
)
async def test_garbage_is_the_backends_fault(protocol: Protocol, peer: Peer, driver, body: bytes) -> None:
    peer.play(protocol.path, whole(body))
    assert flags(await failure(driver(protocol.kind).generate(raw()))) == ("BACKEND_PROTOCOL", True, False)
    peer.play(protocol.stream_path, Reply([b"data: " + body + b"\n\n"]))
    found = await failure(driver(protocol.kind).stream(raw()))
    assert found.is_fault
    assert found.error.reason in ("BACKEND_PROTOCOL", "STREAM_BROKEN")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999999"])
async def test_numbers_that_json_does_not_have(protocol: Protocol, peer: Peer, driver, number: str) -> None:
    body = protocol.answer.parts[0]
    for place in (b'"prompt_tokens": 4', b'"generated_tokens": 3', b'"logprob": -0.25'):
        bad = body.replace(place, place.split(b":")[0] + b": " + number.encode())
        if bad == body or (number == "1e999999" and b"logprob" in place):
            continue
        peer.play(protocol.path, whole(bad, x_prompt_tokens="4"))
        assert (await failure(driver(protocol.kind).generate(raw()))).error.reason == "BACKEND_PROTOCOL"


async def test_redirects_are_not_followed(protocol: Protocol, peer: Peer, driver) -> None:
    async with Peer() as other:
        other.play(protocol.path, protocol.answer)
        for status in (301, 307, 308):
            peer.play(protocol.path, whole({}, status, location=other.url + protocol.path))
            peer.play("/health", whole({}, status, location=other.url + protocol.path))
            assert flags(await failure(driver(protocol.kind).generate(raw()))) == (
                "BACKEND_FAILED",
                True,
                False,
            )
            assert not await driver(protocol.kind).is_healthy()
        assert other.asked == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, ("BACKEND_KEY_REFUSED", True, True)),
        (424, ("GENERATION_FAILED", True, False)),
        (429, ("BACKEND_OVERLOADED", False, True)),
        (500, ("BACKEND_FAILED", True, False)),
        (502, ("BACKEND_UNAVAILABLE", True, True)),
        (503, ("BACKEND_UNAVAILABLE", True, True)),
    ],
)
async def test_statuses_say_whose_fault_it_is(
    protocol: Protocol, peer: Peer, driver, status: int, expected: tuple[str, bool, bool]
) -> None:
    peer.play(protocol.path, whole(b"<h1>no</h1>", status))
    peer.play(protocol.stream_path, whole(b"<h1>no</h1>", status))
    assert flags(await failure(driver(protocol.kind).generate(raw()))) == expected
    assert flags(await failure(driver(protocol.kind).stream(raw()))) == expected
    assert len(peer.asked) == 2


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e999", 1.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        ("99999", 60.0),
    ],
)
async def test_full_backend_says_when_to_come_again(
    protocol: Protocol, peer: Peer, driver, told: str, seconds: float
) -> None:
    peer.play(protocol.path, whole({"error": "overloaded"}, 429, retry_after=told))
    found = await failure(driver(protocol.kind).generate(raw()))
    assert (found.retry_after_seconds, found.is_fault) == (seconds, False)
    assert found.error.metadata["retry_after_seconds"].isdigit()


async def test_prompt_that_is_too_long_is_the_callers_fault(protocol: Protocol, peer: Peer, driver) -> None:
    status, body = protocol.too_long
    peer.play(protocol.path, whole(body, status))
    with pytest.raises(UnprocessableRequest) as caught:
        await driver(protocol.kind).generate(raw())
    assert caught.value.reason == "PROMPT_TOO_LONG"


async def test_error_at_the_beginning_of_a_stream_of_status_200(
    protocol: Protocol, peer: Peer, driver
) -> None:
    peer.play(protocol.stream_path, events(protocol.error))
    found = await failure(driver(protocol.kind).stream(raw()))
    assert found.is_fault
    assert found.error.reason in ("GENERATION_FAILED", "BACKEND_FAILED")


@pytest.mark.parametrize("then", ["error", "cut", "end", "garbage", "endless"])
async def test_stream_that_breaks_after_its_first_piece(
    protocol: Protocol, peer: Peer, driver, then: str
) -> None:
    sent = {
        "error": events(*protocol.tokens, protocol.error),
        "cut": events(*protocol.tokens, then="cut"),
        "end": events(*protocol.tokens),
        "garbage": events(*protocol.tokens, b"{nonsense"),
        "endless": Reply([*events(*protocol.tokens).parts, b"data: " + b"x" * MAX_EVENT_BYTES], then="cut"),
    }[then]
    peer.play(protocol.stream_path, sent)
    pieces = await driver(protocol.kind).stream(raw())
    assert [(await anext(pieces)).text for _ in range(2)] == ["Hi", " you"]
    assert flags(await failure(anext(pieces))) == ("STREAM_BROKEN", True, False)


async def test_answers_and_streams_are_bounded(
    protocol: Protocol, peer: Peer, driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER_BYTES", 4096)
    peer.play(protocol.path, Reply([b" " * 1024] * 8, then="wait"))
    found = await failure(driver(protocol.kind).generate(raw()))
    assert flags(found) == ("BACKEND_PROTOCOL", True, False)
    await peer.left()
    peer.gone.clear()
    peer.play(protocol.stream_path, Reply([b": a comment\n\n" * 80] * 8, then="wait"))
    assert (await failure(driver(protocol.kind).stream(raw()))).error.reason == "BACKEND_PROTOCOL"
    await peer.left()


async def test_endless_error_is_read_in_part(protocol: Protocol, peer: Peer, driver) -> None:
    body = b'{"error": "' + b"x" * exchange.MAX_ERROR_BYTES
    peer.play(protocol.path, Reply([body, body], 500, then="wait"))
    assert (await failure(driver(protocol.kind).generate(raw()))).error.reason == "BACKEND_FAILED"
    await peer.left()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nx-prompt-tokens: 4\x00evil\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx-a: b\r\n x-folded\r\ncontent-length: -1\r\n\r\n{}",
        b"SMTP ready\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_http(protocol: Protocol, peer: Peer, driver, head: bytes) -> None:
    peer.play(protocol.path, Reply(raw=head))
    found = await failure(driver(protocol.kind).generate(raw()))
    assert flags(found) == ("BACKEND_PROTOCOL", True, False)


async def test_prompts_and_names_stay_inside_the_body(protocol: Protocol, peer: Peer, driver) -> None:
    text = 'a"\r\nhost: evil\r\n\r\n\u2028 \x00'
    name = "x\r\nx-evil: 1"
    peer.play(protocol.path, protocol.answer)
    await driver(protocol.kind).generate(raw(name, text))
    asked = peer.asked[-1]
    assert text in (asked.json.get("inputs"), asked.json.get("prompt"))
    assert "x-evil" not in asked.headers
    assert asked.headers["host"] == peer.url.removeprefix("http://")


async def test_errors_of_the_backend_make_no_headers(protocol: Protocol, peer: Peer, driver) -> None:
    peer.play(protocol.path, whole({"error": "no\r\nset-cookie: a=b", "reason": "BAD\r\nX: y"}, 422))
    with pytest.raises(LorauterError) as caught:
        await driver(protocol.kind).generate(raw())
    assert caught.value.reason == "REFUSED_BY_BACKEND"


async def test_health_is_a_status_of_200(protocol: Protocol, peer: Peer, driver) -> None:
    client = driver(protocol.kind)
    peer.play("/health", whole(b""))
    assert await client.is_healthy()
    for sent in (whole({}, 503), whole({}, 204), Reply(then="cut", raw=b"x"), Reply(raw=b"HTTP/1.1 200")):
        peer.play("/health", sent)
        assert not await client.is_healthy()


async def test_cookies_and_environment_are_not_sent(
    protocol: Protocol, peer: Peer, driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    peer.play(
        protocol.path, Reply(protocol.answer.parts, 200, {**protocol.answer.headers, "set-cookie": "a=b"})
    )
    for _ in range(2):
        await driver(protocol.kind).generate(raw())
    assert not any({"cookie", "authorization"} & asked.headers.keys() for asked in peer.asked)
    assert not any("hf_secret" in str(asked) for asked in peer.asked)
