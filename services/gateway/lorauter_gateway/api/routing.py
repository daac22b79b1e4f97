"""Restrictions on routing, as callers of HTTP write them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from lorauter.router.v1.router_pb2 import ChatMessage, RouteRequest
from lorauter_gateway.api.bodies import Body


class RoutingBody(BaseModel):
    """The extension ``lorauter`` of a generation's body; see lorauter.router.v1.RouteRequest."""

    pool: str = ""
    strategy: str = ""
    max_adapters: int = Field(0, ge=0, le=16)
    tags: list[str] = []
    exclude_tasks: list[str] = []
    exclude_adapters: list[str] = []
    min_generation: str = ""

    def to_request(self) -> RouteRequest:
        """Returns the request without a query."""
        return RouteRequest(
            pool=self.pool,
            strategy=self.strategy,
            max_adapters=self.max_adapters,
            tags=self.tags,
            exclude_tasks=self.exclude_tasks,
            exclude_adapters=self.exclude_adapters,
            min_generation=self.min_generation,
        )


class RoutedMessage(BaseModel):
    """A message of the conversation to route."""

    role: str
    content: str


class RouteBody(RoutingBody, Body):
    """The body of /v1/route: ``query`` or ``messages``, and restrictions."""

    query: str = ""
    messages: list[RoutedMessage] = []
    explain: bool = False

    def to_request(self) -> RouteRequest:
        """Returns the request."""
        request = super().to_request()
        request.query = self.query
        request.explain = self.explain
        request.messages.extend(ChatMessage(role=m.role, content=m.content) for m in self.messages)
        return request


def routing_request(routing: RoutingBody | None) -> RouteRequest:
    """Returns the restrictions, none if ``routing`` is None."""
    return routing.to_request() if routing else RouteRequest()
