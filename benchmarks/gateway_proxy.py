"""The least that stands between a caller and a backend in Python: what a proxy costs without any routing.

Run by benchmarks.gateway as ``python -m benchmarks.gateway_proxy PORT``, the backend's.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import uvloop
from aiohttp import web


async def run(backend: str) -> None:
    """Passes bodies on, and answers back, until standard input ends."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {"content-type": "application/json"}
            async with session.post(backend + request.path, data=body, headers=headers) as answer:
                if answer.content_type != "text/event-stream":
                    content = await answer.read()
                    return web.Response(body=content, status=answer.status, content_type=answer.content_type)
                response = web.StreamResponse(headers={"content-type": "text/event-stream"})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response

        app = web.Application()
        app.router.add_post("/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(run(f"http://127.0.0.1:{sys.argv[1]}"))
