"""Options that say how a pool's decisions are served."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import state_name

_UNITS = {"": 1, **{f"{name}b": 1000**power for power, name in enumerate(("", "k", "m", "g", "t"))}}
_UNITS |= {f"{name}ib": 1024**power for power, name in enumerate(("k", "m", "g", "t"), 1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([a-z]*)")
_MOST_BYTES = 2**63 - 1


class Fallback(StrEnum):
    """What happens to a decision that a backend cannot serve as it is."""

    degrade = "degrade"
    refuse = "refuse"


class ManifestPolicy(StrEnum):
    """Who publishes pool manifests."""

    manual = "manual"
    auto = "auto"


FallbackOption = Annotated[
    Fallback | None,
    typer.Option(help="What happens to a decision that cannot be served: the next best, or an error."),
]
ComposeOption = Annotated[
    bool | None,
    typer.Option(
        "--compose-on-demand/--no-compose-on-demand",
        help="Write and load compositions on vLLM when they are decided.",
    ),
]
ManifestOption = Annotated[
    ManifestPolicy | None, typer.Option(help="Who publishes manifests: you alone, or the worker, too.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="Memory for adapters on each TGI instance, such as 8GiB, for the worker's proposals."),
]


def change_serving(
    serving: pb.ServingPolicy,
    fallback: Fallback | None,
    compose_on_demand: bool | None,
    manifest_policy: ManifestPolicy | None,
    manifest_memory: str | None,
) -> bool:
    """Puts what was given into ``serving`` and returns whether anything was; raises typer.BadParameter."""
    given = (fallback, compose_on_demand, manifest_policy, manifest_memory)
    if fallback is not None:
        serving.fallback = pb.Fallback.Value(f"FALLBACK_{fallback.upper()}")
    if compose_on_demand is not None:
        serving.compose_on_demand = compose_on_demand
    if manifest_policy is not None:
        serving.manifest_policy = pb.ManifestPolicy.Value(f"MANIFEST_POLICY_{manifest_policy.upper()}")
    if manifest_memory is not None:
        serving.manifest_memory_bytes = read_bytes(manifest_memory)
    return any(value is not None for value in given)


def read_bytes(text: str, option: str = "--manifest-memory") -> int:
    """Returns a size such as 8GiB, 500 MB or 1048576 in bytes; raises typer.BadParameter."""
    found = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(found[2]) if found else None
    size = round(float(found[1]) * unit) if found and unit else -1
    if not 0 <= size <= _MOST_BYTES:
        raise typer.BadParameter(f"{text!r} is no size: write 8GiB, 500MB or bytes", param_hint=option)
    return size


def serving_fields(serving: pb.ServingPolicy) -> tuple[tuple[str, object], ...]:
    """Returns names and values for people."""
    memory = f"{serving.manifest_memory_bytes:,} bytes" if serving.manifest_memory_bytes else "none"
    return (
        ("fallback", state_name(pb.Fallback.Name(serving.fallback), "FALLBACK_").lower()),
        ("compose on demand", "yes" if serving.compose_on_demand else "no"),
        (
            "manifests",
            state_name(pb.ManifestPolicy.Name(serving.manifest_policy), "MANIFEST_POLICY_").lower(),
        ),
        ("manifest memory", memory),
    )
