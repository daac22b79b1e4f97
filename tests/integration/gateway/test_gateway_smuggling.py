"""One request is one request, whatever its headers say; what it holds never changes an answer's framing."""

from __future__ import annotations

import asyncio
import gzip
import json
from urllib.parse import urlsplit

import pytest

BODY = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 3}}).encode()
INNER = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
REFUSED = {400, 501}

TRICKS = {
    "length beside chunks": (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", CHUNKED + INNER),
    "chunks beside length": (b"Transfer-Encoding: chunked\r\n" + LENGTH, CHUNKED + INNER),
    "two lengths": (LENGTH + b"Content-Length: 0\r\n", BODY + INNER),
    "two lengths in one": (b"Content-Length: %d, 0\r\n" % len(BODY), BODY + INNER),
    "signed length": (b"Content-Length: +%d\r\n" % len(BODY), BODY + INNER),
    "length that is no number": (b"Content-Length: 0x10\r\n", BODY + INNER),
    "space before the colon": (b"Transfer-Encoding : chunked\r\n" + LENGTH, BODY + INNER),
    "folded header": (LENGTH + b"X-A: b\r\n Transfer-Encoding: chunked\r\n", BODY + INNER),
    "unknown coding": (b"Transfer-Encoding: xchunked\r\n", CHUNKED + INNER),
    "coding in quotes": (b'Transfer-Encoding: "chunked"\r\n', CHUNKED + INNER),
    "coding twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKED + INNER),
    "carriage return in a value": (LENGTH + b"X-A: b\rTransfer-Encoding: chunked\r\n", BODY + INNER),
    "huge chunk": (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\n" + BODY + b"\r\n" + INNER),
    "negative chunk": (b"Transfer-Encoding: chunked\r\n", b"-1\r\n" + BODY + b"\r\n" + INNER),
}


async def exchange(url: str, head: bytes, body: bytes) -> list[int]:
    """Sends bytes as they are, then ends; returns the statuses of all answers."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n")
    writer.write(body)
    await writer.drain()
    statuses: list[int] = []
    try:
        async with asyncio.timeout(10):
            answer = b""
            while len(statuses) < 2 and (piece := await reader.read(65_536)):
                answer += piece
                statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
                if statuses and statuses[0] in REFUSED:
                    break
                if b"}" in answer and len(statuses) == 1 and not body.endswith(INNER):
                    break
    except TimeoutError:
        pass
    writer.close()
    return statuses


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_request_reaches_a_backend_twice_or_differently_when_its_end_is_told_in_two_ways(
    stand, trick
):
    """A refusal is well; so is reading it as RFC 9112 says. What follows it is then a request in the open."""
    head, body = TRICKS[trick]
    statuses = await exchange(stand.url, head, body)
    sent = [each for each in stand.engine.bodies if each.get("inputs") != "Hello"]
    assert sent == []
    assert len(stand.engine.bodies) == sum(status == 200 for status in statuses)
    assert statuses, "no answer at all"
    assert set(statuses) <= {200, *REFUSED}


@pytest.mark.parametrize(
    "value", ["adds\r\nx-a: b", "adds\nx", "adds\x00", "adds x", "../adds", "adds%0d%0ax"]
)
async def test_adapter_id_is_refused_when_it_holds_what_parts_headers(stand, value):
    answer = await stand.post("/generate", {"inputs": "Hello", "parameters": {"adapter_id": value}})
    assert answer.status_code in (400, 404, 422)
    assert stand.engine.bodies == []
    assert not any("\n" in held or "\r" in held for held in answer.headers.values())


async def test_only_our_own_headers_reach_a_backend(stand):
    headers = {
        "connection": "keep-alive, x-secret",
        "x-secret": "s",
        "te": "trailers",
        "proxy-authorization": "Basic x",
        "upgrade": "h2c",
        "x-lorauter-backend": "other",
        "x-lorauter-decision": "other",
        "x-forwarded-for": "1.2.3.4",
        "cookie": "a=b",
    }
    answer = await stand.post("/generate", json.loads(BODY), headers=headers)
    assert answer.status_code == 200
    (sent,) = stand.engine.headers
    assert not {"x-secret", "te", "proxy-authorization", "upgrade", "cookie", "x-forwarded-for"} & sent.keys()
    assert not [name for name in sent if name.startswith("x-lorauter")]
    assert answer.headers["x-lorauter-backend"] == "engine-0"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_packed_body_is_refused_unread_when_nobody_unpacks_it(stand, coding):
    """A bomb is as large as it is on the wire: no service unpacks what callers send."""
    bomb = gzip.compress(b" " * (16 * 1024 * 1024) + BODY)
    headers = {"content-encoding": coding, "content-type": "application/json"}
    answer = await stand.http.post(f"{stand.url}/generate", content=bomb, headers=headers)
    assert answer.status_code in (400, 415, 422)
    assert stand.engine.bodies == []


HOSTILE = (
    'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "\n\nevent: error\ndata: x\n\n",
    "\r\n\r\n: comment\r\rid: 7\n",
    '"}, "finish_reason": "stop"}\u2028\u2029\x85',
    "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions", "/v1/chat/completions"])
async def test_stream_keeps_its_framing_when_prompt_and_answer_look_like_events(stand, path, text):
    stand.engine.words = ("Hello", text, "end")
    prompt = (
        {"messages": [{"role": "user", "content": text + "x"}]} if "chat" in path else {"prompt": text + "x"}
    )
    body = (
        {"inputs": text + "x"} if path == "/generate_stream" else {"model": "auto", "stream": True, **prompt}
    )
    answer = await stand.post(path, body)
    assert answer.status_code == 200
    lines = answer.content.decode().split("\n\n")
    assert lines[-1] == ""
    events = [line.removeprefix("data:").strip() for line in lines[:-1]]
    assert all(line.startswith("data:") and "\n" not in line and "\r" not in line for line in lines[:-1])
    parsed = [json.loads(event) for event in events if event != "[DONE]"]
    assert events.count("[DONE]") == (path != "/generate_stream")
    assert text in "".join(map(_text, parsed))
    assert stand.engine.bodies[0].get("inputs", text + "x") == text + "x"


def _text(event: dict) -> str:
    if "token" in event:
        return event["token"]["text"]
    choice = (event.get("choices") or [{}])[0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""
