"""A server that plays given bytes, good and bad, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is sent for one request. ``parts`` go out as chunks, one write each; ``raw`` goes out as it is.

    ``then``: what follows; "end" completes the answer, "cut" closes the connection, "wait" keeps silent until
    the client leaves.
    """

    parts: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    then: str = "end"
    raw: bytes = b""


def whole(body: object, status: int = 200, **headers: str) -> Reply:
    """An answer in one piece, as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(
        [data] if data else [], status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


def events(*data: object, then: str = "end") -> Reply:
    """A stream of events, each in a chunk of its own."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in data]
    return Reply(
        [b"data:" + line + b"\n\n" for line in lines], 200, {"content-type": "text/event-stream"}, then
    )


class Peer:
    """An HTTP server on a port of its own. ``replies`` by path; of several the last one is repeated."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[Asked] = []
        self.connections = 0
        self.waits = asyncio.Event()
        self.gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def play(self, path: str, *replies: Reply) -> None:
        """Sets what is sent for requests of a path."""
        self.replies[path] = list(replies)

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [asked.path for asked in self.asked]

    async def left(self) -> None:
        """Returns once a client closed a connection on which it was kept waiting."""
        async with asyncio.timeout(SECONDS):
            await self.gone.wait()

    async def waiting(self) -> None:
        """Returns once a client is kept waiting."""
        async with asyncio.timeout(SECONDS):
            await self.waits.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while asked := await _request(reader):
                self.asked.append(asked)
                if not await self._send(self._reply(asked.path), reader, writer):
                    return
        except ConnectionError:
            self.gone.set()
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    def _reply(self, path: str) -> Reply:
        left = self.replies.get(path)
        if not left:
            return whole({"detail": "Not Found"}, 404)
        return left.pop(0) if len(left) > 1 else left[0]

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection may be used again."""
        if reply.raw:
            writer.write(reply.raw)
        else:
            lines = [f"HTTP/1.1 {reply.status} Played", "transfer-encoding: chunked"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in reply.parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        if reply.then == "wait":
            self.waits.set()
            await reader.read(1)
            self.gone.set()
        if reply.then != "end" or reply.raw:
            await writer.drain()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    method, path, _ = first.split(" ")
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
