"""What product services install alone: typed clients of registry, router and gateway."""

from lorauter.client.aio import AsyncClient
from lorauter.client.options import NO_RETRY, RetryPolicy
from lorauter.client.sync import Client

__all__ = ["NO_RETRY", "AsyncClient", "Client", "RetryPolicy"]
