"""A router process to time: the real one, on a synthetic snapshot held in memory.

Run by benchmarks.latency as ``python -m benchmarks.latency_router TEXTS TASKS CACHE SEED``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from benchmarks.latency_texts import load, make_snapshot
from lorauter.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lorauter.index import MemoryIndex
from lorauter.telemetry import configure_logging
from lorauter_router.config import Settings
from lorauter_router.main import wired


def prepared(texts: Path, tasks: int, seed: int, encoder: Encoder) -> MemoryIndex:
    """Returns an index that holds a synthetic snapshot."""
    given = load(texts.read_text(encoding="utf-8"))
    index = MemoryIndex()
    index.publish(make_snapshot(tasks, given.short + given.flan, encoder.digest, seed), [])
    return index


async def run(index: MemoryIndex, encoder: Encoder, cache: int) -> None:
    """Serves until standard input ends, after a line ``{"port": …}``; ``cache`` is the size of its caches."""
    settings = Settings(
        qdrant_url="http://127.0.0.1:1",
        access="open",
        query_cache=cache,
        decision_cache=cache,
    )
    async with wired(settings, index, encoder) as router:
        port = await router.server.start("127.0.0.1", 0)
        print(json.dumps({"port": port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await router.server.stop(0)


if __name__ == "__main__":
    configure_logging("bench", "ERROR", "text")
    tasks, cache, seed = map(int, sys.argv[2:5])
    used = load_encoder(DEFAULT_ENCODER)
    asyncio.run(run(prepared(Path(sys.argv[1]), tasks, seed, used), used, cache))
