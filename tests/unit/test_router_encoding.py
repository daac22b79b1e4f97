"""How queries are batched, shared, cached and refused on their way to the encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lorauter.errors import Exhausted
from lorauter_router.adapters.encoding import BatchingEncoder, alike
from lorauter_router.ports import Encoded


class GatedEncoder:
    """Encodes a text as its length, one batch per opening of the gate."""

    digest, dimension = "sha256:gated", 1

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    async def begins(self) -> None:
        """Returns once a batch has been taken from the queue."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=20)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.begun.release()
        assert self.gate.acquire(timeout=20)
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError("the encoder failed")
        return np.array([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def gated() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
async def queries(gated: GatedEncoder) -> AsyncIterator[BatchingEncoder]:
    encoder = BatchingEncoder(gated, batch=3, queue=5, cache_size=2)
    yield encoder
    gated.gate.release(100)
    await encoder.close()


async def started(queries: BatchingEncoder, *texts: str) -> list[asyncio.Task[list[Encoded]]]:
    """Starts one call per text and lets each reach the queue."""
    tasks = [asyncio.create_task(queries.encode([text], "t")) for text in texts]
    await asyncio.sleep(0)
    return tasks


async def test_queries_are_encoded_together_when_they_wait_for_the_same_thread(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    first = await started(queries, "a")
    await gated.begins()
    rest = await started(queries, "bb", "ccc", "dddd", "eeeee")
    gated.gate.release(3)
    results = [result[0] for result in await asyncio.gather(*first, *rest)]
    assert gated.batches == [["a"], ["bb", "ccc", "dddd"], ["eeeee"]]
    assert [float(result.vector[0]) for result in results] == [1, 2, 3, 4, 5]
    assert not any(result.cached for result in results)


async def test_text_is_encoded_once_when_several_ask_for_it(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    calls = await started(queries, "same", "same")
    gated.gate.release()
    await asyncio.gather(*calls)
    (again,) = await queries.encode(["same"], "t")
    assert gated.batches == [["same"]]
    assert again.cached
    assert not again.vector.flags.writeable


async def test_oldest_vector_is_forgotten_when_the_cache_is_full(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    gated.gate.release(9)
    for text in ("a", "b", "a", "c"):
        await queries.encode([text], "t")
    assert (await queries.encode(["a", "b"], "t"))[0].cached
    assert [text for batch in gated.batches for text in batch] == ["a", "b", "c", "b"]


async def test_query_is_refused_when_too_many_wait(gated: GatedEncoder, queries: BatchingEncoder) -> None:
    running = await started(queries, "running")
    await gated.begins()
    waiting = await started(queries, "1", "2", "3", "4", "5")
    with pytest.raises(Exhausted) as refused:
        await queries.encode(["one too many"], "t")
    assert refused.value.reason == "ENCODER_BUSY"
    gated.gate.release(3)
    await asyncio.gather(*running, *waiting)


async def test_query_is_dropped_when_its_caller_is_gone(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    running = await started(queries, "running")
    await gated.begins()
    gone, kept = await started(queries, "gone", "kept")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    gated.gate.release(2)
    await asyncio.gather(*running, kept)
    assert gated.batches == [["running"], ["kept"]]


async def test_short_queries_do_not_wait_for_a_long_one_when_both_wait(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    running = await started(queries, "running")
    await gated.begins()
    long = "long" * 100
    waiting = await started(queries, "1", long, "2")
    gated.gate.release(2)
    await asyncio.gather(*running, waiting[0], waiting[2])
    assert gated.batches == [["running"], ["1", "2"]]
    gated.gate.release()
    assert float((await waiting[1])[0].vector[0]) == 400


async def test_call_of_many_texts_is_answered_whole_when_batches_part_them(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    gated.gate.release(5)
    texts = ["a" * length for length in (500, 1, 2, 500, 3)]
    assert [float(result.vector[0]) for result in await queries.encode(texts, "t")] == [500, 1, 2, 500, 3]
    assert gated.batches == [["a" * 500], ["a", "aa", "aaa"]]


async def test_cancelled_call_leaves_others_their_texts_when_they_share_some(
    gated: GatedEncoder, queries: BatchingEncoder
) -> None:
    running = await started(queries, "running")
    await gated.begins()
    both = asyncio.create_task(queries.encode(["mine", "shared"], "t"))
    other = asyncio.create_task(queries.encode(["shared"], "t"))
    await asyncio.sleep(0)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    gated.gate.release(2)
    assert float((await other)[0].vector[0]) == 6
    await asyncio.gather(*running)
    assert gated.batches == [["running"], ["shared"]]


@pytest.mark.parametrize(
    ("lengths", "most", "chosen"),
    [
        ([], 8, []),
        ([30], 8, [0]),
        ([30, 60, 500, 70], 8, [0, 1, 3]),
        ([300, 30, 375, 260, 226, 99], 8, [0, 2, 3]),
        ([10] * 9, 4, [0, 1, 2, 3]),
        ([500, 500, 500], 8, [0, 1]),
        ([5_000, 90_000, 10], 8, [0]),
        ([100_000, 10], 8, [0]),
    ],
)
def test_oldest_text_is_encoded_with_those_of_like_length_when_several_wait(
    lengths: list[int], most: int, chosen: list[int]
) -> None:
    assert alike(lengths, most) == chosen


async def test_next_batch_is_encoded_when_one_failed(gated: GatedEncoder, queries: BatchingEncoder) -> None:
    gated.gate.release(2)
    with pytest.raises(ValueError, match="failed"):
        await queries.encode(["bad", "other"], "t")
    assert [float(r.vector[0]) for r in await queries.encode(["fine", "fine"], "t")] == [4, 4]
