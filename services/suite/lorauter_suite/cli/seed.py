"""`lorauter seed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorauter_suite.cli.context import connect, err
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, seed


def add_commands(root: typer.Typer) -> None:
    """Adds `seed` to the command."""
    root.command("seed")(seed_demo)


def seed_demo(
    engine_url: Annotated[str, typer.Option(help="The engine that serves the demo's base model.")],
    directory: Annotated[
        Path, typer.Option(help="The demo pool, here and where the registry reads it.", exists=True)
    ] = POOL_DIRECTORY,
) -> None:
    """Register the demo pool with services elsewhere; what is there already is left as it is."""
    names: list[str] = []
    with connect() as client:
        seed(client, engine_url, names.append, directory)
    adapters = sum(name.startswith("adapter ") for name in names)
    err.print(f"pool {POOL_ID} is registered: {adapters} adapters, {len(names) - adapters} tasks")
