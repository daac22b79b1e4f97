"""Turns a gRPC status back into the lorauter error that the server raised."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from lorauter.errors import LorauterError, error_class

_DETAILS = "grpc-status-details-bin"


def to_error(failure: grpc.RpcError) -> LorauterError:
    """Returns the error behind a failed call.

    Its reason and metadata come from google.rpc.ErrorInfo; where a server or proxy sent none, the
    reason is the status's name, for instance UNAVAILABLE.
    """
    assert isinstance(failure, grpc.Call | grpc.aio.AioRpcError)
    code = failure.code()
    error = error_class(code)(code.name, failure.details() or code.name.lower())
    info = _error_info(failure)
    if info is not None:
        error.reason = info.reason
        error.metadata = dict(info.metadata)
    return error


def _error_info(failure: grpc.Call | grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for key, value in failure.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
        except DecodeError:
            return None
    return None
