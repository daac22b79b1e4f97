"""Reads the name by which a caller says what should answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorauter.errors import NotFound
from lorauter.gateway.v1.gateway_pb2 import GenerateRequest
from lorauter.identifiers import BASE
from lorauter.router.v1.router_pb2 import PoolSnapshot
from lorauter_gateway.domain.model import Target, TargetKind

ROUTED_NAMES = frozenset({"", "auto", "tgi", "dummy"})
"""Names that leave the choice to the router; clients of TGI send ``tgi`` or ``dummy``."""

_PIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(@[a-z0-9][a-z0-9._-]{0,62})?")


def parse_target(name: str, pools: Sequence[PoolSnapshot]) -> Target:
    """Returns what ``name`` stands for.

    ``auto`` and ``auto:<pool>`` route; ``base``, ``base:<pool>`` and a base model's id or alias
    bypass; everything else pins an adapter, optionally ``@`` a version or alias. Raises NotFound
    (UNKNOWN_MODEL) for what can be none of these.
    """
    if name in ROUTED_NAMES:
        return Target()
    kind, colon, pool = name.partition(":")
    if colon and kind in (TargetKind.AUTO, BASE):
        return Target(TargetKind(kind), pool)
    if name == BASE:
        return Target(TargetKind.BASE)
    for known in pools:
        if name == known.base_model or name in known.base_model_aliases:
            return Target(TargetKind.BASE, known.pool)
    if _PIN.fullmatch(name):
        return Target(TargetKind.PIN, adapter=name)
    raise unknown_model(name)


def unknown_model(name: str) -> NotFound:
    """Returns the error for a name that stands for nothing."""
    return NotFound(
        "UNKNOWN_MODEL",
        f"the model {name[:80]!r} does not exist: use 'auto', an adapter's id, or the base model's id",
        model=name[:80],
    )


def requested_target(request: GenerateRequest) -> Target:
    """Returns the target of a gRPC request."""
    if request.adapter:
        return Target(TargetKind.PIN, request.pool, request.adapter)
    return Target(TargetKind.BASE if request.base else TargetKind.AUTO, request.pool)
