"""Archives of a whole registry over gRPC, in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from lorauter.errors import InvalidArgument
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.server.grpc import Context
from lorauter_registry.api.calls import Calls
from lorauter_registry.api.convert import to_message, to_value
from lorauter_registry.domain.archives.requests import ExportRegistry, ImportRegistry
from lorauter_registry.service.exporting import PIECE_BYTES
from lorauter_registry.service.importing import Import


class ArchiveStreams:
    """The two RPCs that carry archives."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ExportRegistry(  # noqa: N802
        self, request: pb.ExportRegistryRequest, _: Context
    ) -> AsyncIterator[pb.ExportRegistryResponse]:
        """Streams an archive; see Exporting.export_registry."""
        asked = to_value(request, ExportRegistry)
        export = await self._calls.run(self._calls.registry.export_registry, asked)
        contents: pb.RegistryContents | None = to_message(export.contents, pb.RegistryContents)
        try:
            while data := await self._calls.run(export.read_archive, rpc="ExportRegistry"):
                yield pb.ExportRegistryResponse(data=data, total_bytes=export.total_bytes, contents=contents)
                contents = None
        finally:
            export.close()

    async def ImportRegistry(  # noqa: N802
        self, pieces: AsyncIterable[pb.ImportRegistryRequest], _: Context
    ) -> pb.RegistryContents:
        """Takes a header and an archive; see Importing.begin_import and Import."""
        importing: Import | None = None
        try:
            async for piece in pieces:
                if importing is None:
                    begin, asked = self._calls.registry.begin_import, _header(piece)
                    begin = self._calls.registry.begin_import
                    importing = await self._calls.run(begin, asked, rpc="ImportRegistry")
                else:
                    await self._calls.run(importing.feed_archive, _data(piece), rpc="ImportRegistry")
            if importing is None:
                raise _no_header()
            answer = await self._calls.run(importing.finish_import, rpc="ImportRegistry")
            return to_message(answer, pb.RegistryContents)
        finally:
            if importing is not None:
                importing.close()


def _header(piece: pb.ImportRegistryRequest) -> ImportRegistry:
    if piece.WhichOneof("piece") != "header":
        raise _no_header()
    return to_value(piece.header, ImportRegistry)


def _no_header() -> InvalidArgument:
    return InvalidArgument("MISSING_HEADER", "the first message must carry the header, the archive follows")


def _data(piece: pb.ImportRegistryRequest) -> bytes:
    if piece.WhichOneof("piece") == "header":
        raise InvalidArgument("INVALID_FIELD", "only the first message may carry the header", field="header")
    if len(piece.data) > PIECE_BYTES:
        raise InvalidArgument(
            "CHUNK_TOO_LARGE", f"a message has at most {PIECE_BYTES} bytes of the archive: send several"
        )
    return piece.data
