"""The one family of errors: each has a reason for programs and a message for people.

A reason is mapped once to a gRPC status and once to an HTTP status, by class.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class LorauterError(Exception):
    """Something that a caller can act on.

    ``reason`` is UPPER_SNAKE_CASE and stable; ``message`` says what was wrong, where, and what
    to do; ``metadata`` holds what a program may need, as strings.
    """

    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    http_status: ClassVar[int] = 500

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata


class InvalidArgument(LorauterError):
    """The request is wrong whatever the state of the system."""

    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class UnprocessableRequest(InvalidArgument):
    """The request is well-formed, but the model or adapter it names cannot serve it."""

    http_status = 422


class PayloadTooLarge(LorauterError):
    """The request exceeds a size limit."""

    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 413


class Unauthenticated(LorauterError):
    """The caller did not say who it is."""

    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class PermissionDenied(LorauterError):
    """The caller may not do this."""

    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class NotFound(LorauterError):
    """What the request names does not exist."""

    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404


class AlreadyExists(LorauterError):
    """What the request would create exists already."""

    grpc_status = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409


class Conflict(LorauterError):
    """Somebody else changed it first: read it again and retry."""

    grpc_status = grpc.StatusCode.ABORTED
    http_status = 409


class FailedPrecondition(LorauterError):
    """The system is not in a state for this request; retrying alone does not help."""

    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 412


class Exhausted(LorauterError):
    """The service is full; retry later."""

    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429


class Unavailable(LorauterError):
    """A part that is needed is away; retry later."""

    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503


class DeadlineExceeded(LorauterError):
    """The caller's deadline passed."""

    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


class Unimplemented(LorauterError):
    """The call is known but not served."""

    grpc_status = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501


class Internal(LorauterError):
    """A defect of ours. Carries a correlation id and nothing else."""

    grpc_status = grpc.StatusCode.INTERNAL
    http_status = 500


_BY_STATUS: dict[grpc.StatusCode, type[LorauterError]] = {
    cls.grpc_status: cls
    for cls in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        Conflict,
        FailedPrecondition,
        Exhausted,
        Unavailable,
        DeadlineExceeded,
        Unimplemented,
        Internal,
    )
}


def error_class(status: grpc.StatusCode) -> type[LorauterError]:
    """Returns the class that a client raises for a gRPC status."""
    return _BY_STATUS.get(status, LorauterError)
