"""What every interceptor does with the handler of a call: puts something around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc


def inner_of(handler: Any) -> Any:
    """Returns the function that answers the call, whichever of both sides stream."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def rewrapped(handler: Any, behavior: Any, deserialize: Callable[[bytes], Any] | None) -> Any:
    """Returns a handler of the same kind that answers by ``behavior`` what ``deserialize`` reads."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behavior, deserialize, handler.response_serializer)
