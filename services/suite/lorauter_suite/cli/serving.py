"""`lorauter route` and `lorauter generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorauter.gateway.v1 import gateway_pb2
from lorauter_suite.cli.context import JsonFlag, PoolOption, connect, err, out, print_json, state_name
from lorauter_suite.cli.explained import print_decision, print_explanation, weights

StrategyOption = Annotated[str, typer.Option(help="The routing strategy.")]


def add_commands(root: typer.Typer) -> None:
    """Adds `route` and `generate` to the command."""
    root.command("route")(route)
    root.command("generate")(generate)


def route(
    text: str,
    pool: PoolOption = "",
    strategy: StrategyOption = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say why.")] = False,
    why_not: Annotated[list[str] | None, typer.Option(help="Say why not this adapter; up to 8.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Resolve a query to a weighted adapter set."""
    with connect() as client:
        decision = client.route(text, pool=pool, strategy=strategy, explain=explain, why_not=why_not or ())
    if as_json:
        print_json(decision)
        return
    print_decision(decision)
    if decision.HasField("explanation"):
        print_explanation(decision.explanation)


def generate(
    text: str,
    pool: PoolOption = "",
    adapter: Annotated[str, typer.Option(help="Pin this adapter instead of routing.")] = "",
    base: Annotated[bool, typer.Option("--base", help="Ask the bare base model.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="The most new tokens.")] = 64,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer a prompt with the adapters that measured best on tasks like it."""
    with connect() as client:
        if stream:
            for piece in client.generate_stream(
                text, pool=pool, adapter=adapter, base=base, max_new_tokens=max_new_tokens
            ):
                out.print(piece.text, end="", markup=False, highlight=False)
                if piece.HasField("served"):
                    err.print(served_by(piece.served), markup=False, style="dim")
            out.print()
            return
        answer = client.generate(text, pool=pool, adapter=adapter, base=base, max_new_tokens=max_new_tokens)
    if as_json:
        print_json(answer)
        return
    err.print(served_by(answer.served), markup=False, style="dim")
    out.print(answer.text, markup=False, highlight=False)


def served_by(served: gateway_pb2.Served) -> str:
    """Returns one line about what really served a request."""
    composition = state_name(gateway_pb2.Composition.Name(served.composition), "COMPOSITION_").lower()
    line = f"{served.backend_id}: {weights(served.adapters) or 'base'} ({composition})"
    return f"{line}; {served.degraded_reason}" if served.degraded_reason else line
