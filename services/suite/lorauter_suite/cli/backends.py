"""`lorauter backend`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, print_fields, print_json, print_table, state_name

app = typer.Typer(help="Inference servers of a pool.", no_args_is_help=True)


class Kind(StrEnum):
    """What a backend speaks."""

    engine = "engine"
    tgi = "tgi"
    vllm = "vllm"


def _count(text: str) -> Any:
    return typer.Option(help=text, min=0, max=2**31 - 1)


@app.command("register")
def register(
    backend: str,
    pool: Annotated[str, typer.Option(help="The pool it serves.")],
    url: Annotated[
        str, typer.Option(help="Its base URL; dns+http:// makes every address of the name a replica.")
    ],
    kind: Annotated[Kind, typer.Option(help="What it speaks.")] = Kind.engine,
    adapter_slots: Annotated[
        int, _count("Adapters that a replica holds at a time: half of vLLM's --max-cpu-loras. 0: one.")
    ] = 0,
    max_rank: Annotated[
        int, _count("Largest rank that it serves: vLLM's --max-lora-rank. 0: its kind's default.")
    ] = 0,
    max_concurrent_requests: Annotated[
        int, _count("Requests that a replica works on at a time. 0: what it says itself.")
    ] = 0,
    adapters_path: Annotated[
        str, typer.Option(help="Where it finds the adapter store. Default: /adapters.", show_default=False)
    ] = "",
    shards: Annotated[int, _count("Tensor-parallel shards, which TGI pads ranks by. 0: one.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Register an inference server, or change one: what is not given has its default again."""
    limits = pb.BackendLimits(
        adapter_slots=adapter_slots,
        max_rank=max_rank,
        max_concurrent_requests=max_concurrent_requests,
        adapters_path=adapters_path,
        shards=shards,
    )
    with connect() as client:
        found = client.registry.register_backend(
            id=backend,
            pool=pool,
            url=url,
            kind=pb.BackendKind.Value(f"BACKEND_KIND_{kind.upper()}"),
            limits=limits,
        )
    _show(found, as_json)


@app.command("list")
def list_all(
    pool: Annotated[str, typer.Option(help="Only those of this pool.")] = "", as_json: JsonFlag = False
) -> None:
    """List inference servers."""
    with connect() as client:
        found = list(client.registry.list_backends(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = ((b.id, b.pool, _kind(b), b.url, _state(b), _limits(b.limits)) for b in found)
    print_table(("backend", "pool", "kind", "url", "state", "limits"), rows)


@app.command("drain")
def drain(backend: str, as_json: JsonFlag = False) -> None:
    """Take an inference server out of new requests; running ones finish."""
    with connect() as client:
        found = client.registry.drain_backend(id=backend)
    _show(found, as_json)


def _kind(backend: pb.Backend) -> str:
    return state_name(pb.BackendKind.Name(backend.kind), "BACKEND_KIND_").lower()


def _state(backend: pb.Backend) -> str:
    return state_name(pb.BackendState.Name(backend.state), "BACKEND_STATE_")


def _limits(limits: pb.BackendLimits) -> str:
    """Returns what is not left to the defaults, in words."""
    said = (
        (limits.adapter_slots, f"{limits.adapter_slots} slots"),
        (limits.max_rank, f"rank {limits.max_rank}"),
        (limits.max_concurrent_requests, f"{limits.max_concurrent_requests} at a time"),
        (limits.shards, f"{limits.shards} shards"),
        (limits.adapters_path, limits.adapters_path),
    )
    return ", ".join(text for value, text in said if value)


def _show(backend: pb.Backend, as_json: bool) -> None:
    if as_json:
        print_json(backend)
        return
    print_fields(
        (
            ("backend", backend.id),
            ("pool", backend.pool),
            ("kind", _kind(backend)),
            ("url", backend.url),
            ("state", _state(backend)),
            ("limits", _limits(backend.limits)),
            ("generation", backend.generation),
        )
    )
