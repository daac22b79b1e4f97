"""`lorauter pool` and `lorauter backend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, print_fields, print_json, print_table, state_name

app = typer.Typer(help="Pools: a base model with its adapters and backends.", no_args_is_help=True)
backends = typer.Typer(help="Inference servers of a pool.", no_args_is_help=True)


@app.command("create")
def create(
    pool: str,
    base_model: Annotated[str, typer.Option(help="The base model's id.")],
    base_path: Annotated[
        Path | None, typer.Option(help="Its directory, to read digests and shapes from.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name that adapters may carry.")] = None,
    description: str = "",
    as_json: JsonFlag = False,
) -> None:
    """Create a pool."""
    with connect() as client:
        created = client.registry.create_pool(
            id=pool,
            base_model=base_model,
            base_path=str(base_path.resolve()) if base_path else "",
            aliases=alias or [],
            description=description,
        )
    _show(created, as_json)


@app.command("list")
def list_all(as_json: JsonFlag = False) -> None:
    """List pools."""
    with connect() as client:
        pools = list(client.registry.list_pools())
    if as_json:
        print_json(pools)
    else:
        print_table(
            ("pool", "base model", "description"), ((p.id, p.base_model, p.description) for p in pools)
        )


@app.command("show")
def show(pool: str, as_json: JsonFlag = False) -> None:
    """Show a pool."""
    with connect() as client:
        found = client.registry.get_pool(id=pool)
    _show(found, as_json)


def _show(pool: pb.Pool, as_json: bool) -> None:
    if as_json:
        print_json(pool)
        return
    print_fields(
        (
            ("pool", pool.id),
            ("base model", pool.base_model),
            ("aliases", ", ".join(pool.aliases)),
            ("weights", pool.weights_digest),
            ("linear layers", len(pool.modules)),
            ("description", pool.description),
            ("generation", pool.generation),
        )
    )


@backends.command("register")
def register(
    backend: str,
    pool: Annotated[str, typer.Option(help="The pool it serves.")],
    url: Annotated[str, typer.Option(help="Its base URL.")],
    kind: Annotated[str, typer.Option(help="engine, tgi or vllm.")] = "engine",
) -> None:
    """Register an inference server, or change its URL."""
    with connect() as client:
        found = client.registry.register_backend(
            id=backend, pool=pool, url=url, kind=pb.BackendKind.Value(f"BACKEND_KIND_{kind.upper()}")
        )
    print_fields((("backend", found.id), ("pool", found.pool), ("url", found.url)))


@backends.command("list")
def list_backends(as_json: JsonFlag = False) -> None:
    """List inference servers."""
    with connect() as client:
        found = list(client.registry.list_backends())
    if as_json:
        print_json(found)
        return
    rows = (
        (
            b.id,
            b.pool,
            state_name(pb.BackendKind.Name(b.kind), "BACKEND_KIND_").lower(),
            b.url,
            state_name(pb.BackendState.Name(b.state), "BACKEND_STATE_"),
        )
        for b in found
    )
    print_table(("backend", "pool", "kind", "url", "state"), rows)


@backends.command("drain")
def drain(backend: str) -> None:
    """Take an inference server out of new requests."""
    with connect() as client:
        client.registry.drain_backend(id=backend)
