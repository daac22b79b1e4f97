"""A registry that knows the benchmark's keys and nothing else; the gateway and the router ask it.

Run by benchmarks.gateway as ``python -m benchmarks.gateway_keys OWN PLAIN LIMITED``: the gateway's key, a
caller's, and one of a caller with limits that are never reached.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.access import read_key
from lorauter.errors import Unauthenticated
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.registry.v1 import registry_pb2_grpc
from lorauter.server.grpc import GrpcServer
from lorauter.server.run import serve
from lorauter.settings import ServiceSettings
from lorauter.telemetry import configure_logging

_UNREACHED = 1_000_000_000


class Keys(registry_pb2_grpc.RegistryServiceServicer):
    """Answers WhoAmI."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys`` are the gateway's, a caller's, and that of a caller with limits."""
        own, plain, limited = keys
        self._known: Mapping[str, pb.Caller] = {
            f"Bearer {own}": pb.Caller(tenant="gateways", scopes=["read", "invoke"], any_tenant=True),
            f"Bearer {plain}": pb.Caller(tenant="default", scopes=["invoke"]),
            f"Bearer {limited}": pb.Caller(
                tenant="default",
                scopes=["invoke"],
                requests_per_minute=_UNREACHED,
                tokens_per_minute=_UNREACHED,
            ),
        }
        for text, caller in self._known.items():
            presented = read_key(text.removeprefix("Bearer "))
            caller.key_id = presented.id if presented else ""

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.Caller:  # noqa: N802
        """See the proto."""
        found = self._known.get(dict(context.invocation_metadata()).get("authorization", ""))
        if found is None:
            raise Unauthenticated("KEY_INVALID", "the benchmark has no such key")
        return found


async def run(keys: Sequence[str]) -> None:
    """Serves until SIGTERM."""
    server = GrpcServer()
    known = Keys(keys)  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(known, server.server)
    await serve(ServiceSettings(), None, server)


if __name__ == "__main__":
    configure_logging("bench", "ERROR", "text")
    asyncio.run(run(sys.argv[1:]))
