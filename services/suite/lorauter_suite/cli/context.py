"""What all commands share: where the suite is, and how answers are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorauter import Client
from lorauter.errors import Unavailable
from lorauter_suite.suite import Addresses, Suite

DEFAULT_DATA = Path(".lorauter")

PLAIN_WIDTH = 120
"""Columns of what is printed into a file or a pipe."""


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


out = _console(stderr=False)
err = _console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PoolOption = Annotated[str, typer.Option("--pool", help="The pool; may be left out where there is one.")]


def data_dir() -> Path:
    """Returns the embedded suite's data directory: LORAUTER_DATA, else .lorauter here."""
    return Path(os.environ.get("LORAUTER_DATA", DEFAULT_DATA))


def running() -> Addresses:
    """Returns the addresses of the embedded suite that runs on the data directory; raises Unavailable."""
    found = Suite.find(data_dir())
    if found is None:
        raise Unavailable(
            "SUITE_NOT_RUNNING",
            f"no suite runs on {data_dir()}: start one with `lorauter up`, or set LORAUTER_REGISTRY_ADDRESS, "
            "LORAUTER_ROUTER_ADDRESS and LORAUTER_GATEWAY_ADDRESS to reach another",
        )
    return found


def connect() -> Client:
    """Returns a client for the addresses in the environment, else for the embedded suite.

    Its key is LORAUTER_API_KEY, else, for the embedded suite, the one in its data directory.
    """
    names = ("LORAUTER_REGISTRY_ADDRESS", "LORAUTER_ROUTER_ADDRESS", "LORAUTER_GATEWAY_ADDRESS")
    if any(os.environ.get(name) for name in names):
        return Client()
    found = running()
    return found.client(api_key=os.environ.get("LORAUTER_API_KEY") or found.api_key)


def key_headers() -> dict[str, str]:
    """Returns what a request over HTTP carries: LORAUTER_API_KEY, else the embedded suite's key."""
    key = os.environ.get("LORAUTER_API_KEY", "")
    if key:
        return {"authorization": f"Bearer {key}"}
    found = Suite.find(data_dir())
    return found.headers if found else {}


def to_dict(message: Message) -> dict[str, Any]:
    """Returns a message as a dictionary with the names of the protos."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(value: Message | Iterable[Message]) -> None:
    """Prints a message, or a list of messages, as JSON."""
    plain = to_dict(value) if isinstance(value, Message) else [to_dict(one) for one in value]
    print(json.dumps(plain, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Prints rows under bold columns."""
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out.print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Prints names and values in two columns, leaving out what is empty."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in fields:
        if value not in ("", None):
            table.add_row(f"[bold]{name}[/bold]", escape(str(value)))
    out.print(table)


def state_name(enum_name: str, prefix: str) -> str:
    """Returns an enum value's name without its type's prefix."""
    return enum_name.removeprefix(prefix)
