"""What a key may do, and what a call asks for."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

from google.protobuf.descriptor import ServiceDescriptor

from lorauter.access.v1 import access_pb2


class Scope(StrEnum):
    """What a key allows; ANY is asked for by calls that every good key may make."""

    ADMIN = "admin"
    WRITE = "write"
    READ = "read"
    INVOKE = "invoke"
    ANY = "any"


_ALLOWED_BY = {
    Scope.ADMIN: {Scope.ADMIN},
    Scope.WRITE: {Scope.ADMIN, Scope.WRITE},
    Scope.READ: {Scope.ADMIN, Scope.WRITE, Scope.READ},
    Scope.INVOKE: {Scope.ADMIN, Scope.INVOKE},
    Scope.ANY: set(Scope),
}


def allows(held: frozenset[Scope], asked: Scope) -> bool:
    """Returns whether a key with the scopes ``held`` may make a call that asks for ``asked``."""
    return not _ALLOWED_BY[asked].isdisjoint(held)


@cache
def scope_of(service: ServiceDescriptor, method: str) -> Scope | None:
    """Returns what a method of a service asks for by its option in the proto; None: nobody may call it."""
    found = service.methods_by_name.get(method)
    if found is None:
        return None
    number = found.GetOptions().Extensions[access_pb2.scope]
    if number == access_pb2.SCOPE_UNSPECIFIED:
        return None
    return Scope(access_pb2.Scope.Name(number).removeprefix("SCOPE_").lower())


@cache
def is_public(service: ServiceDescriptor, method: str) -> bool:
    """Returns whether every tenant may call a method of a service for tenant `public`."""
    found = service.methods_by_name.get(method)
    return found is not None and found.GetOptions().Extensions[access_pb2.public]
