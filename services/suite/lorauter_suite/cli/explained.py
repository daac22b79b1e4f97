"""A decision and its explanation, as tables for people."""

from __future__ import annotations

from lorauter.router.v1 import router_pb2 as pb
from lorauter_suite.cli.context import print_fields, print_table, state_name

EXPLAINED = 12
"""Rows of each table of an explanation; --json has all."""


def print_decision(decision: pb.RouteResponse) -> None:
    """Prints what a router decided, with the tasks behind it."""
    best = decision.best_single
    unmeasured = "" if decision.measured else " (not measured together)"
    print_fields(
        (
            ("adapters", (weights(decision.adapters) or "base") + unmeasured),
            ("best single", f"{best.adapter_id} (expected {best.expected_utility:.2f} of the best)"),
            ("action", state_name(pb.RouteAction.Name(decision.action), "ROUTE_ACTION_").lower()),
            ("because", decision.action_reason),
            ("typicality", f"{decision.typicality:.2f}"),
            ("generation", decision.generation + (" (stale: the index is away)" if decision.stale else "")),
            ("decision", decision.decision_id),
            ("took", f"{decision.timings.total_ms:.1f} ms ({decision.timings.encode_ms:.1f} encoding)"),
        )
    )
    rows = (
        (t.task_id, f"{t.similarity:.3f}", f"{t.probability:.3f}", "" if t.measured else "not measured")
        for t in decision.tasks
    )
    print_table(("task", "similarity", "probability", ""), rows)


def print_explanation(explanation: pb.Explanation) -> None:
    """Prints where weights come from, who was considered, what was measured, and why not others."""
    origins = (
        (one.adapter_id, f"{one.weight:.3f}", part.task_id, f"{part.probability:.3f}", f"{part.share:.3f}")
        for one in explanation.origins
        for part in one.tasks
    )
    print_table(("adapter", "weight", "of it from", "probability", "share"), list(origins)[:EXPLAINED])
    rows = ((c.adapter_id, f"{c.expected_utility:.3f}", c.reason) for c in explanation.candidates[:EXPLAINED])
    print_table(("adapter", "expected utility", "why"), rows)
    measured = (
        (a.task_id, a.adapter_id, f"{100 * a.score:.1f} ± {100 * a.standard_error:.1f}", a.count)
        for a in explanation.affinities[:EXPLAINED]
    )
    print_table(("task", "adapter", "score %", "examples"), measured)
    if explanation.compositions:
        compositions = (
            (one.task_id, weights(one.members), f"{one.gain:+.3f} ± {one.gain_error:.3f}", one.reason)
            for one in explanation.compositions
        )
        print_table(("task", "composition", "gain", "why"), compositions)
    print_table(("constant", "value"), ((n, f"{v:.4g}") for n, v in sorted(explanation.constants.items())))
    if explanation.HasField("next_best"):
        found = explanation.next_best
        said = (
            f"{found.adapter_id} (expected {found.expected_utility:.3f} of the best, {_behind(found.behind)})"
        )
        print_fields((("next best", said),))
    if explanation.why_not:
        asked = ((one.adapter_id, _fate(one), one.message) for one in explanation.why_not)
        print_table(("why not", "", ""), asked)


def weights(adapters: object) -> str:
    """Returns `id 0.62, id2 0.38`."""
    return ", ".join(f"{a.adapter_id} {a.weight:.2f}" for a in adapters)  # type: ignore[attr-defined]


def _behind(value: float) -> str:
    return f"{value:.3f} behind" if value >= 0 else f"{-value:.3f} ahead of the best single"


def _fate(said: pb.WhyNot) -> str:
    return state_name(pb.AdapterFate.Name(said.fate), "ADAPTER_FATE_").lower().replace("_", " ")
