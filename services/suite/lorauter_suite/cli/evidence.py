"""What was measured, ordered and in words: affinities, and the lift card of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from lorauter.registry.v1 import registry_pb2 as pb

BASE = "base"
"""The adapter id of the bare base model."""


def routed_score(affinity: pb.Affinity) -> float:
    """Returns what routing uses, 0 to 1: the shrunk score, or the score where there is none."""
    return affinity.shrunk_score if affinity.HasField("shrunk_score") else affinity.score


def best_first(affinities: Iterable[pb.Affinity]) -> list[pb.Affinity]:
    """Returns affinities of one task by what routing uses; on a tie the eligible first, then the base."""
    return sorted(
        affinities,
        key=lambda a: (
            -routed_score(a),
            not a.eligible,
            a.adapter_id != BASE,
            -a.score,
            a.adapter_id,
            -a.adapter_version,
        ),
    )


def by_task(affinities: Iterable[pb.Affinity]) -> dict[str, list[pb.Affinity]]:
    """Returns the affinities of each task, tasks by id, each best first."""
    groups: dict[str, list[pb.Affinity]] = {}
    for one in affinities:
        groups.setdefault(one.task_id, []).append(one)
    return {task: best_first(groups[task]) for task in sorted(groups)}


def shortened(best: Sequence[pb.Affinity], top: int) -> list[pb.Affinity]:
    """Returns the first ``top`` adapters of a task, and the base wherever it stands; 0 means all."""
    adapters = [one for one in best if one.adapter_id != BASE]
    kept = {id(one) for one in (adapters[:top] if top else adapters)}
    return [one for one in best if one.adapter_id == BASE or id(one) in kept]


def score_text(affinity: pb.Affinity) -> str:
    """Returns the score with its standard error in %, such as `78.0 ± 4.1`; `-` without examples."""
    if not affinity.count:
        return "-"
    return f"{100 * affinity.score:.1f} ± {100 * affinity.standard_error:.1f}"


def routed_text(affinity: pb.Affinity) -> str:
    """Returns what routing uses in %, such as `74.5`; `-` where the registry does not say."""
    return f"{100 * affinity.shrunk_score:.1f}" if affinity.HasField("shrunk_score") else "-"


def lift_text(affinity: pb.Affinity) -> str:
    """Returns the gain over the base in points, such as `+37.0 ± 9.0`; `-` where it was not judged."""
    if affinity.adapter_id == BASE or not affinity.HasField("lift"):
        return "-"
    return f"{100 * affinity.lift:+.1f} ± {100 * affinity.lift_error:.1f}"


def round_text(affinity: pb.Affinity) -> str:
    """Returns in which round of matching an adapter fell."""
    if affinity.imported:
        return "imported"
    return f"fell in {affinity.round}" if affinity.round else "stayed"


def lift_summary(task: pb.Task) -> str:
    """Returns base and routed score of a task in a few characters, for a table."""
    if task.HasField("lift"):
        lift = task.lift
        return (
            f"{100 * lift.base_score:.0f} → {100 * lift.score:.0f} ± {100 * lift.standard_error:.0f} "
            f"({lift.adapter_id})"
        )
    if not task.best_adapter:
        return "-"
    base = f"{100 * task.base_score:.0f}" if task.HasField("base_score") else "?"
    return f"{base} → {100 * task.best_score:.0f} ({task.best_adapter})"


def lift_card(task: pb.Task, best: Sequence[pb.Affinity]) -> list[Text]:
    """Returns the lines that say what routing gains on a task. ``best``: its affinities, best first."""
    if task.HasField("lift"):
        return _base_card(task.lift, best) if task.lift.adapter_id == BASE else _routed_card(task)
    if task.best_adapter:
        base = f"{100 * task.base_score:.0f}" if task.HasField("base_score") else "not measured"
        line = Text.assemble(
            ("base ", ""), (base, "bold"), " → best ", (f"{100 * task.best_score:.0f}", "bold")
        )
        return [
            line.append(f" with {task.best_adapter}, on the examples that chose it; not judged on others")
        ]
    return [Text(_why_unmeasured(task))]


def _routed_card(task: pb.Task) -> list[Text]:
    lift = task.lift
    sure = 100 * (lift.lift - lift.lift_error)
    lines = [
        Text.assemble(
            "base ",
            (f"{100 * lift.base_score:.0f}", "bold"),
            " → routed ",
            (f"{100 * lift.score:.0f}", "bold green"),
            f" ± {100 * lift.standard_error:.0f} with ",
            (lift.adapter_id, "bold"),
            f" (n = {_examples(lift.count)} that did not choose it)",
        ),
        Text(f"a gain of {100 * lift.lift:.0f} points, {sure:.0f} or more with 95 % confidence", style="dim"),
    ]
    if task.best_adapter not in ("", lift.adapter_id):
        score = f"{100 * task.best_score:.0f}"
        line = f"all examples together prefer {task.best_adapter}, which is routed to: {score}"
        lines.append(Text(line, style="dim"))
    return lines


def _base_card(lift: pb.Lift, best: Sequence[pb.Affinity]) -> list[Text]:
    lines = [
        Text.assemble(
            "nothing beats the base beyond the error: base ",
            (f"{100 * lift.base_score:.0f}", "bold"),
            f" ± {100 * lift.standard_error:.0f} (n = {_examples(lift.count)})",
        )
    ]
    judged = [one for one in best if one.adapter_id != BASE and one.HasField("lift")]
    if judged:
        closest = max(judged, key=lambda one: one.lift - one.lift_error)
        line = f"closest: {closest.adapter_id}, {lift_text(closest)} points (n = {closest.judged_count})"
        lines.append(Text(line, style="dim"))
    return lines


def _why_unmeasured(task: pb.Task) -> str:
    if task.version == 0:
        return "not measured: it has no validation set, `lorauter task put` gives it one"
    if task.state == pb.TASK_STATE_MATCHING:
        return "being measured: `lorauter operation list` says how far"
    return "not measured yet: routed by the tasks that it resembles"


def _examples(count: int) -> str:
    return f"{count:,} example" if count == 1 else f"{count:,} examples"
