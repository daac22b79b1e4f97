"""`lorauter key`, `lorauter whoami` and `lorauter audit`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lorauter.access import make_key
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, err, print_fields, print_json, print_table

app = typer.Typer(help="API keys.", no_args_is_help=True)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class KeyScope(StrEnum):
    """What a key allows."""

    admin = "admin"
    write = "write"
    read = "read"
    invoke = "invoke"


def _period(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter("give a number and s, m, h or d: 90d, 24h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def add_commands(root: typer.Typer) -> None:
    """Adds `whoami` and `audit` to the command."""
    root.command("whoami")(whoami)
    root.command("audit")(audit)


@app.command("new")
def new() -> None:
    """Print a new key that no registry knows yet, for LORAUTER_BOOTSTRAP_KEY or LORAUTER_GATEWAY_KEY."""
    print(make_key())


@app.command("create")
def create(
    description: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[list[KeyScope], typer.Option(help="What it may do; may be repeated.")],
    tenant: Annotated[str, typer.Option(help="Whose key it is. Default: your key's.")] = "",
    any_tenant: Annotated[bool, typer.Option("--any-tenant", help="It may act for other tenants.")] = False,
    expires_in: Annotated[
        timedelta | None,
        typer.Option(
            parser=_period, metavar="PERIOD", help="How long it is good: 90d, 24h. Default: for ever."
        ),
    ] = None,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print it, which no other command will."""
    with connect() as client:
        made = client.registry.create_api_key(
            description=description,
            scopes=[str(one) for one in scope],
            tenant=tenant,
            any_tenant=any_tenant,
            expire_time=_from_now(expires_in),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    _print_made(made, as_json)


@app.command("rotate")
def rotate(
    key: Annotated[str, typer.Argument(help="The id of the key to replace.")],
    overlap: Annotated[
        timedelta | None,
        typer.Option(parser=_period, metavar="PERIOD", help="How long the old one stays good. Default: 24h."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key like another one and print it; the old one stays good for the overlap."""
    stays = None
    if overlap is not None:
        stays = Duration()
        stays.FromTimedelta(overlap)
    with connect() as client:
        made = client.registry.rotate_api_key(id=key, overlap=stays)
    _print_made(made, as_json)


@app.command("revoke")
def revoke(key: Annotated[str, typer.Argument(help="The key's id.")], as_json: JsonFlag = False) -> None:
    """End a key: the registry refuses it at once, the other services within 5 s."""
    with connect() as client:
        found = client.registry.revoke_api_key(id=key)
    if as_json:
        print_json(found)
    else:
        err.print(f"key {found.id} is revoked")


@app.command("list")
def list_all(as_json: JsonFlag = False) -> None:
    """List the keys of your tenant, newest first, without their secrets."""
    with connect() as client:
        found = list(client.registry.list_api_keys())
    if as_json:
        print_json(found)
        return
    rows = ((k.id, k.tenant, _scopes(k.scopes, k.any_tenant), _state(k), k.description) for k in found)
    print_table(("key", "tenant", "scopes", "state", "description"), rows)


def whoami(as_json: JsonFlag = False) -> None:
    """Say whom your key belongs to, and what it allows."""
    with connect() as client:
        found = client.registry.who_am_i()
    if as_json:
        print_json(found)
        return
    expires = _time(found.expire_time) if found.HasField("expire_time") else "never"
    print_fields(
        (
            ("key", found.key_id or "none: access is open"),
            ("tenant", found.tenant),
            ("scopes", _scopes(found.scopes, found.any_tenant)),
            ("expires", expires),
            ("requests a minute", found.requests_per_minute or ""),
            ("tokens a minute", found.tokens_per_minute or ""),
        )
    )


def audit(
    key: Annotated[str, typer.Option(help="Only what this key changed.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most entries.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List who changed what, newest first."""
    with connect() as client:
        found = list(islice(client.registry.list_audit_entries(key_id=key), limit))
    if as_json:
        print_json(found)
        return
    rows = ((_time(e.time), e.key_id, e.method, e.resource, e.generation) for e in found)
    print_table(("time", "key", "call", "what", "generation"), rows)


def _print_made(made: pb.CreateApiKeyResponse, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    err.print(f"key {made.key.id} of tenant {made.key.tenant}; keep it now, it is not shown again:")
    print(made.secret)


def _from_now(period: timedelta | None) -> Timestamp | None:
    if period is None:
        return None
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + period)
    return moment


def _scopes(scopes: Iterable[str], any_tenant: bool) -> str:
    return ", ".join([*scopes, *(["any tenant"] if any_tenant else [])])


def _state(key: pb.ApiKey) -> str:
    if key.HasField("revoke_time"):
        return f"revoked {_time(key.revoke_time)}"
    if not key.HasField("expire_time"):
        return "good"
    ends = key.expire_time.ToDatetime(UTC)
    return f"{'good until' if ends > datetime.now(UTC) else 'expired'} {_time(key.expire_time)}"


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
