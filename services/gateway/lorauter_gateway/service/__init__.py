"""The use cases: every transport calls these and only translates."""

from lorauter_gateway.service.gateway import Gateway
from lorauter_gateway.service.serving import OpenStream, Serving

__all__ = ["Gateway", "OpenStream", "Serving"]
