"""`lorauter pool`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, print_fields, print_json, print_table
from lorauter_suite.cli.policies import (
    ComposeOption,
    FallbackOption,
    ManifestOption,
    MemoryOption,
    change_serving,
    serving_fields,
)

app = typer.Typer(help="Pools: a base model with its adapters and backends.", no_args_is_help=True)


@app.command("create")
def create(
    pool: str,
    base_model: Annotated[str, typer.Option(help="The base model's id.")],
    base_path: Annotated[
        Path | None, typer.Option(help="Its directory, to read digests and shapes from.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name that adapters may carry.")] = None,
    description: str = "",
    fallback: FallbackOption = None,
    compose_on_demand: ComposeOption = None,
    manifest_policy: ManifestOption = None,
    manifest_memory: MemoryOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a pool."""
    serving = pb.ServingPolicy()
    change_serving(serving, fallback, compose_on_demand, manifest_policy, manifest_memory)
    with connect() as client:
        created = client.registry.create_pool(
            id=pool,
            base_model=base_model,
            base_path=str(base_path.resolve()) if base_path else "",
            aliases=alias or [],
            description=description,
            serving=serving,
        )
    _show(created, as_json)


@app.command("update")
def update(
    pool: str,
    description: Annotated[str | None, typer.Option(help="Replaces the description.")] = None,
    fallback: FallbackOption = None,
    compose_on_demand: ComposeOption = None,
    manifest_policy: ManifestOption = None,
    manifest_memory: MemoryOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a pool: what is not given stays as it is."""
    with connect() as client:
        found = client.registry.get_pool(id=pool)
        changed = change_serving(found.serving, fallback, compose_on_demand, manifest_policy, manifest_memory)
        if not changed and description is None:
            raise typer.BadParameter("nothing is to be changed: give an option")
        found = client.registry.update_pool(
            id=pool,
            etag=found.etag,
            description=description,
            serving=found.serving if changed else None,
        )
    _show(found, as_json)


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
            *serving_fields(pool.serving),
            ("generation", pool.generation),
        )
    )
