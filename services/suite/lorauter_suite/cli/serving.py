"""`lorauter route` and `lorauter generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorauter.gateway.v1 import gateway_pb2
from lorauter.router.v1 import router_pb2
from lorauter_suite.cli.context import (
    JsonFlag,
    PoolOption,
    connect,
    err,
    out,
    print_fields,
    print_json,
    print_table,
    state_name,
)

EXPLAINED = 12
"""Rows of each table of an explanation; --json has all."""

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
    as_json: JsonFlag = False,
) -> None:
    """Resolve a query to a weighted adapter set."""
    with connect() as client:
        decision = client.route(text, pool=pool, strategy=strategy, explain=explain)
    if as_json:
        print_json(decision)
        return
    _print_decision(decision)
    if explain:
        _print_explanation(decision.explanation)


def _print_decision(decision: router_pb2.RouteResponse) -> None:
    best = decision.best_single
    print_fields(
        (
            ("adapters", weights(decision.adapters) or "base"),
            ("best single", f"{best.adapter_id} (expected {best.expected_utility:.2f} of the best)"),
            ("action", state_name(router_pb2.RouteAction.Name(decision.action), "ROUTE_ACTION_").lower()),
            ("because", decision.action_reason),
            ("typicality", f"{decision.typicality:.2f}"),
            ("generation", decision.generation + (" (stale: the index is away)" if decision.stale else "")),
            ("took", f"{decision.timings.total_ms:.1f} ms ({decision.timings.encode_ms:.1f} encoding)"),
        )
    )
    rows = (
        (t.task_id, f"{t.similarity:.3f}", f"{t.probability:.3f}", "" if t.measured else "not measured")
        for t in decision.tasks
    )
    print_table(("task", "similarity", "probability", ""), rows)


def _print_explanation(explanation: router_pb2.Explanation) -> None:
    rows = ((c.adapter_id, f"{c.expected_utility:.3f}", c.reason) for c in explanation.candidates[:EXPLAINED])
    print_table(("adapter", "expected utility", "why"), rows)
    measured = (
        (a.task_id, a.adapter_id, f"{100 * a.score:.1f} ± {100 * a.standard_error:.1f}", a.count)
        for a in explanation.affinities[:EXPLAINED]
    )
    print_table(("task", "adapter", "score %", "examples"), measured)
    print_table(("constant", "value"), ((n, f"{v:.4g}") for n, v in sorted(explanation.constants.items())))


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


def weights(adapters: object) -> str:
    """Returns `id 0.62, id2 0.38`."""
    return ", ".join(f"{a.adapter_id} {a.weight:.2f}" for a in adapters)  # type: ignore[attr-defined]


def served_by(served: gateway_pb2.Served) -> str:
    """Returns one line about what really served a request."""
    composition = state_name(gateway_pb2.Composition.Name(served.composition), "COMPOSITION_").lower()
    line = f"{served.backend_id}: {weights(served.adapters) or 'base'} ({composition})"
    return f"{line}; {served.degraded_reason}" if served.degraded_reason else line
