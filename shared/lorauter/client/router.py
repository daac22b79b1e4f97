"""The router's calls."""

from __future__ import annotations

from lorauter.client.calls import AsyncNamespace, Listing, SyncNamespace, Unary
from lorauter.router.v1 import router_pb2 as pb


class RouterCalls:
    """What Router and AsyncRouter have in common. Each call takes its request's fields as keywords."""

    service = "lorauter.router.v1.RouterService"

    route = Unary("Route", pb.RouteRequest, pb.RouteResponse, read=True)
    route_batch = Unary("RouteBatch", pb.RouteBatchRequest, pb.RouteBatchResponse, read=True)
    replay = Unary("Replay", pb.ReplayRequest, pb.ReplayResponse, read=True)
    get_snapshot = Unary("GetSnapshot", pb.GetSnapshotRequest, pb.GetSnapshotResponse, read=True)
    resolve_adapter = Unary("ResolveAdapter", pb.ResolveAdapterRequest, pb.ResolveAdapterResponse, read=True)
    list_servable_adapters = Listing(
        "ListServableAdapters",
        pb.ListServableAdaptersRequest,
        pb.ListServableAdaptersResponse,
        lambda page: page.adapters,
        pb.ResolveAdapterResponse,
    )


class Router(RouterCalls, SyncNamespace):
    """The router's calls, blocking."""


class AsyncRouter(RouterCalls, AsyncNamespace):
    """The router's calls, asynchronous."""
