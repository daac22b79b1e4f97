"""The real router with the real encoder, on a small synthetic pool whose one backend is the stub.

Run by benchmarks.gateway as ``python -m benchmarks.gateway_router STUB_PORT SEED KEYS_PORT``. It differs from
the router's own main only by its index, which is in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import replace

from benchmarks.gateway_stub import MODEL
from benchmarks.latency_texts import make_snapshot, make_texts
from lorauter.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lorauter.index import MemoryIndex
from lorauter.routing.model import Adapter, Backend
from lorauter.server.http import create_app
from lorauter.server.run import serve
from lorauter.telemetry import configure_logging
from lorauter_router.config import Settings
from lorauter_router.main import wired

TASKS = 48

ADAPTER = "adapter-0"
"""An adapter that can be pinned."""


def prepared(stub_port: int, seed: int, encoder: Encoder) -> MemoryIndex:
    """Returns an index with a pool of 48 tasks and 1,000 adapters."""
    snapshot = make_snapshot(TASKS, make_texts(400, seed, None).short, encoder.digest, seed)
    pool = replace(
        snapshot.pools["bench"],
        base_model=MODEL,
        adapters=tuple(_adapter(adapter) for adapter in snapshot.pools["bench"].adapters),
        backends=(Backend("stub", "engine", f"http://127.0.0.1:{stub_port}", False),),
    )
    index = MemoryIndex()
    index.publish(replace(snapshot, pools={"bench": pool}), [])
    return index


def _adapter(adapter: Adapter) -> Adapter:
    return replace(adapter, digest=f"sha256:{hashlib.sha256(adapter.digest.encode()).hexdigest()}")


async def run(index: MemoryIndex, encoder: Encoder, keys_port: int) -> None:
    """Serves until SIGTERM."""
    settings = Settings(qdrant_url="http://127.0.0.1:1", registry_address=f"127.0.0.1:{keys_port}")
    async with wired(settings, index, encoder) as router:

        async def readiness() -> str:
            return router.follower.lacking()

        app = create_app("lorauter router", readiness, 1024, openapi_url=None)
        await serve(settings, app, router.server)


if __name__ == "__main__":
    configure_logging("bench", "ERROR", "text")
    used = load_encoder(DEFAULT_ENCODER)
    stub_port, seed, keys_port = map(int, sys.argv[1:])
    asyncio.run(run(prepared(stub_port, seed, used), used, keys_port))
