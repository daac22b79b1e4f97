"""What replicas of a backend can do, and how a pool's decisions are served: the protos' values, checked."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from lorauter.errors import InvalidArgument
from lorauter.lora.servers import TGI_RANKS, VLLM_RANKS, Server, tgi
from lorauter_registry.domain.fields import MAX_INT32, MAX_INT64, Text, Value

MAX_PATH = 1_024
"""Most characters of a path."""

_SEPARATORS = "=@,"
"""What parts entries of TGI's LORA_ADAPTERS, so that no path in it can have them."""


class Fallback(StrEnum):
    """What happens to a decision that a backend cannot serve as it is."""

    DEGRADE = "DEGRADE"
    REFUSE = "REFUSE"


class ManifestPolicy(StrEnum):
    """Who publishes pool manifests."""

    MANUAL = "MANUAL"
    AUTO = "AUTO"


def default_for_unspecified(default: str) -> BeforeValidator:
    """Returns what reads an enum's unspecified value as ``default``."""

    def replace(value: Any) -> Any:
        return default if value in ("", "UNSPECIFIED") else value

    return BeforeValidator(replace)


class ServingPolicy(Value):
    """How a pool's decisions are served, and what its TGI instances load."""

    fallback: Annotated[Fallback, default_for_unspecified("DEGRADE")] = Fallback.DEGRADE
    compose_on_demand: bool = False
    manifest_policy: Annotated[ManifestPolicy, default_for_unspecified("MANUAL")] = ManifestPolicy.MANUAL
    manifest_memory_bytes: Annotated[int, Field(ge=0, le=MAX_INT64)] = 0


def _adapters_path(value: str) -> str:
    if not value:
        return value
    if not value.startswith("/") or not value.isprintable() or any(char in value for char in _SEPARATORS):
        raise _invalid(
            "adapters_path",
            f"{value[:80]!r} is not where a server can find the adapter store: give an absolute path without "
            "'=', '@', ',' and control characters",
        )
    return value.rstrip("/") or "/"


Number = Annotated[int, Field(ge=0, le=MAX_INT32)]


class BackendLimits(Value):
    """What a replica of a backend can do. 0 and the empty path mean the defaults that the protos name."""

    adapter_slots: Number = 0
    max_rank: Number = 0
    max_concurrent_requests: Number = 0
    adapters_path: Annotated[Text, Field(max_length=MAX_PATH), AfterValidator(_adapters_path)] = ""
    shards: Number = 0


def check_limits(kind: str, limits: BackendLimits) -> None:
    """Raises InvalidArgument (INVALID_FIELD) for limits that no server of this kind has."""
    ranks: tuple[int, ...] = ()
    if kind == "TGI":
        ranks = _tgi(limits.shards or 1).ranks
    elif kind == "VLLM":
        ranks = VLLM_RANKS
    if limits.max_rank and ranks and limits.max_rank not in ranks:
        allowed = ", ".join(map(str, ranks))
        raise _invalid("max_rank", f"is {limits.max_rank}: a {kind} takes {allowed}, or 0 for its default")


def _tgi(shards: int) -> Server:
    try:
        return tgi(shards)
    except InvalidArgument:
        most = TGI_RANKS[-1] // TGI_RANKS[0]
        raise _invalid("shards", f"is {shards}: a TGI serves adapters on 1 to {most}") from None


def _invalid(field: str, message: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FIELD", f"limits.{field} {message}", field=f"limits.{field}")
