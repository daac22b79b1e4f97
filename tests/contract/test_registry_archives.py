"""Archives over gRPC: in pieces, with a header, and refused with the right reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from lorauter.registry.v1 import registry_pb2 as pb

MEGABYTE = 1024 * 1024


async def filled(served: Any) -> list[pb.ExportRegistryResponse]:
    """Registers something; returns it exported."""
    path = str(served.files.adapter("a"))
    await served.rpc.CreatePool(
        pb.CreatePoolRequest(id="p", base_model="tiny/base", base_path=str(served.files.base()))
    )
    await served.rpc.RegisterAdapter(pb.RegisterAdapterRequest(id="a", pool="p", path=path))
    return [piece async for piece in served.rpc.ExportRegistry(pb.ExportRegistryRequest())]


def pieces(*pieces: bytes, header: bool = True) -> Iterator[pb.ImportRegistryRequest]:
    if header:
        yield pb.ImportRegistryRequest(header=pb.ImportRegistryHeader())
    for piece in pieces:
        yield pb.ImportRegistryRequest(data=piece)


async def refused(served: Any, requests: Iterator[pb.ImportRegistryRequest]) -> str:
    """Returns the reason for which an import is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.rpc.ImportRegistry(requests, metadata=(("x-lorauter-tenant", "other"),))
    trailer = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(trailer).details[0].Unpack(info)
    return info.reason


async def test_archive_comes_in_pieces_that_say_what_is_in_it(served: Any) -> None:
    exported = await filled(served)
    archive = b"".join(piece.data for piece in exported)
    assert {piece.total_bytes for piece in exported} == {len(archive)}
    assert max(len(piece.data) for piece in exported) <= MEGABYTE
    assert exported[0].contents.rows["adapter_version"] == exported[0].contents.adapters == 1
    contents = await served.rpc.ImportRegistry(
        pieces(*(piece.data for piece in exported)), metadata=(("x-lorauter-tenant", "other"),)
    )
    assert contents.rows == exported[0].contents.rows
    generation = await served.rpc.GetGeneration(
        pb.GetGenerationRequest(), metadata=(("x-lorauter-tenant", "other"),)
    )
    assert generation.generation == contents.generation


async def test_import_is_refused_for_its_form(served: Any) -> None:
    (first, *_) = await filled(served)
    twice = [*pieces(), *pieces()]
    assert await refused(served, iter(())) == "MISSING_HEADER"
    assert await refused(served, pieces(first.data, header=False)) == "MISSING_HEADER"
    assert await refused(served, iter(twice)) == "INVALID_FIELD"
    assert await refused(served, pieces(bytes(MEGABYTE + 1))) == "CHUNK_TOO_LARGE"
    assert await refused(served, pieces(first.data[:5_000])) == "ARCHIVE_TRUNCATED"
    assert await refused(served, pieces(b"not a tar" * 100)) == "ARCHIVE_MALFORMED"
    assert await refused(served, pieces()) == "ARCHIVE_TRUNCATED"


async def test_caller_who_goes_in_the_middle_leaves_nothing_behind(served: Any) -> None:
    exported = await filled(served)
    call = served.rpc.ExportRegistry(pb.ExportRegistryRequest())
    await call.read()
    call.cancel()
    sent = asyncio.Event()

    async def half() -> Any:
        for piece in pieces(exported[0].data[:3_000]):
            yield piece
        sent.set()
        await asyncio.Event().wait()

    importing = served.rpc.ImportRegistry(half(), metadata=(("x-lorauter-tenant", "other"),))
    await asyncio.wait_for(sent.wait(), 30)
    importing.cancel()
    again = pieces(*(piece.data for piece in exported))
    assert (await served.rpc.ImportRegistry(again, metadata=(("x-lorauter-tenant", "other"),))).adapters == 1
