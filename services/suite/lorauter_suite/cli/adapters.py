"""`lorauter adapter`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import (
    JsonFlag,
    PoolOption,
    connect,
    print_fields,
    print_json,
    print_table,
    state_name,
)

app = typer.Typer(help="Adapters: LoRAs with immutable versions and movable aliases.", no_args_is_help=True)

AssumeBase = Annotated[
    bool,
    typer.Option(
        "--assume-base",
        help="Vouch for a base of another name, or another chat template or end token; shapes are checked.",
    ),
]


@app.command("register")
def register(
    adapter: str,
    source: Annotated[str, typer.Argument(help="A PEFT directory, or namespace/name@commit on the hub.")],
    pool: Annotated[str, typer.Option(help="The pool it belongs to.")],
    description: str = "",
    tag: Annotated[list[str] | None, typer.Option(help="A label.")] = None,
    assume_base: AssumeBase = False,
    as_json: JsonFlag = False,
) -> None:
    """Register an adapter, or a new version of one."""
    is_directory = Path(source).is_dir()
    with connect() as client:
        found = client.registry.register_adapter(
            id=adapter,
            pool=pool,
            description=description,
            tags=tag or [],
            assume_base=assume_base,
            **({"path": str(Path(source).resolve())} if is_directory else {"hub": source}),
        )
    _show(found, as_json)


class State(StrEnum):
    """How far an adapter's newest version is."""

    registered = "registered"
    verified = "verified"
    active = "active"
    draining = "draining"
    retired = "retired"
    quarantined = "quarantined"


@app.command("list")
def list_all(
    pool: PoolOption = "",
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List adapters with the state of their newest version, and why they are in it."""
    wanted = pb.AdapterState.Value(f"ADAPTER_STATE_{state.upper() if state else 'UNSPECIFIED'}")
    with connect() as client:
        found = list(client.registry.list_adapters(pool=pool, state=wanted, page_size=1_000))
    if as_json:
        print_json(found)
        return
    rows = (
        (
            a.id,
            a.pool,
            a.latest.version,
            a.served_version or "-",
            a.latest.rank,
            _state(a.latest),
            a.latest.state_reason,
        )
        for a in found
    )
    print_table(("adapter", "pool", "latest", "served", "rank", "state", ""), rows)


@app.command("show")
def show(adapter: str, as_json: JsonFlag = False) -> None:
    """Show an adapter with its versions."""
    with connect() as client:
        found = client.registry.get_adapter(id=adapter)
        versions = list(client.registry.list_adapter_versions(id=adapter))
    _show(found, as_json)
    if not as_json:
        rows = ((v.version, _state(v), v.rank, v.digest, v.state_reason) for v in versions)
        print_table(("version", "state", "rank", "digest", ""), rows)


@app.command("alias")
def alias(
    adapter: str, name: str, version: Annotated[int, typer.Argument(help="0 removes the alias.")]
) -> None:
    """Make an alias such as `champion` point to a version."""
    with connect() as client:
        _show(client.registry.set_adapter_alias(id=adapter, alias=name, version=version), False)


@app.command("retire")
def retire(
    adapter: str,
    version: Annotated[int, typer.Option(help="0: all versions.")] = 0,
    successor: Annotated[str, typer.Option(help="The adapter to use instead.")] = "",
) -> None:
    """Take an adapter out of new decisions; pins get an error that names the successor."""
    with connect() as client:
        _show(client.registry.retire_adapter(id=adapter, version=version, successor=successor), False)


@app.command("disable")
def disable(
    adapter: str,
    reason: Annotated[str, typer.Option(help="Why, for people.")],
    version: Annotated[int, typer.Option(help="0: all versions.")] = 0,
    now: Annotated[bool, typer.Option("--now", help="Required: pins are refused too.")] = False,
) -> None:
    """Recall an adapter: refused everywhere."""
    if not now:
        raise typer.BadParameter(
            "it will be refused everywhere, pins included: pass --now to do it", param_hint="--now"
        )
    with connect() as client:
        _show(client.registry.disable_adapter(id=adapter, version=version, reason=reason), False)


def _state(version: pb.AdapterVersion) -> str:
    return state_name(pb.AdapterState.Name(version.state), "ADAPTER_STATE_")


def _show(adapter: pb.Adapter, as_json: bool) -> None:
    if as_json:
        print_json(adapter)
        return
    latest = adapter.latest
    print_fields(
        (
            ("adapter", adapter.id),
            ("pool", adapter.pool),
            ("version", latest.version),
            ("state", f"{_state(latest)}: {latest.state_reason}" if latest.state_reason else _state(latest)),
            ("served", adapter.served_version or "none"),
            ("aliases", ", ".join(f"{name} -> {version}" for name, version in adapter.aliases.items())),
            ("digest", latest.digest),
            ("rank", f"{latest.rank}, alpha {latest.alpha:g}{', rsLoRA' if latest.rslora else ''}"),
            ("targets", ", ".join(latest.target_modules)),
            ("tags", ", ".join(adapter.tags)),
            ("description", adapter.description),
            ("generation", adapter.generation),
        )
    )
