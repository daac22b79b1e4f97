"""Why a decision is what it is: where weights come from, who was next, and why not somebody's adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lorauter.identifiers import BASE
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.decision import (
    Action,
    Candidate,
    Decision,
    Explanation,
    Fate,
    MeasuredSet,
    NextBest,
    Origin,
    TaskShare,
    WeightedArm,
    WhyNot,
)
from lorauter.routing.model import Adapter, Affinity
from lorauter.routing.ranking import ranked
from lorauter.routing.strategies.strategy import Choice, Considered, Floats, Question

MAX_EVIDENCE = 64
"""Most affinities, and most candidates, in an explanation."""

NAMED_TASKS = 3
"""Tasks that a sentence names."""


def explain(
    question: Question, choice: Choice, kept: Floats, decision: Decision, asked: Sequence[str]
) -> Explanation:
    """Returns the explanation of a decision that serves the weights ``kept`` (A,) of ``choice``.

    ``asked`` are the adapters to say something about.
    """
    best = ranked(question, choice, choice.known, MAX_EVIDENCE)
    return Explanation(
        constants=dict(choice.constants),
        affinities=_affinities(question.pool, [match.task_id for match in decision.tasks]),
        candidates=tuple(_candidate(question, choice, kept, row) for row in best),
        origins=_origins(question, choice, kept),
        next_best=_next_best(question, choice, kept, decision, best),
        why_not=tuple(_why_not(question, choice, kept, decision, name) for name in dict.fromkeys(asked)),
        compositions=tuple(_measured_set(question, decision, each) for each in choice.considered),
    )


def explain_nothing(question: Question, reason: str, asked: Sequence[str]) -> Explanation:
    """Returns the explanation where no task takes part and the base is served; ``reason`` says why."""
    return Explanation(
        why_not=tuple(
            _base_served(name, reason, 0.0)
            or _no_part(question, name)
            or WhyNot(name, Fate.UNMEASURED, reason)
            for name in dict.fromkeys(asked)
        )
    )


def _affinities(pool: CompiledPool, tasks: Iterable[str]) -> tuple[tuple[str, Affinity], ...]:
    found = [
        (task_id, affinity)
        for task_id in tasks
        for affinity in sorted(
            pool.tasks[pool.task_rows[task_id]].affinities,
            key=lambda a: (-a.score, a.adapter_id, a.adapter_version),
        )
    ]
    return tuple(found[:MAX_EVIDENCE])


def _candidate(question: Question, choice: Choice, kept: Floats, row: int) -> Candidate:
    single = "; the best single" if row == choice.single else ""
    if kept[row] > 0:
        reason = f"{kept[row]:.3f} of the weight{single}"
    elif choice.composition is not None:
        reason = f"not in the composition that is served{single}"
    elif choice.weights[row] > 0:
        reason = f"best on a task, but outside the adapters asked for{single}"
    else:
        reason = f"best on none of the nearest tasks{single}"
    return Candidate(question.pool.arms[row].adapter_id, _utility(choice, row), reason)


def _utility(choice: Choice, row: int) -> float:
    return min(1.0, float(choice.utilities[row]))


def _origins(question: Question, choice: Choice, kept: Floats) -> tuple[Origin, ...]:
    rows = np.flatnonzero(kept > 0)
    return tuple(
        Origin(question.pool.arms[row], float(kept[row]), _shares(question, choice, int(row), kept[row]))
        for row in rows[np.argsort(-kept[rows], kind="stable")]
    )


def _shares(question: Question, choice: Choice, row: int, weight: float) -> tuple[TaskShare, ...]:
    """Returns what each task gives to an arm's weight.

    A task gives what it has to say to its best arm; a composition has all from the task that it was measured
    on. Where one arm has all for its utility, each task gives in
    proportion to what it adds to that, and by what it has to say where that is nothing.
    """
    grounds = choice.grounds
    given = np.zeros(len(grounds.rows))
    own = grounds.best == row
    given[: len(own)][own] = grounds.say[: len(own)][own]
    if grounds.source >= 0:
        given[grounds.source] = 1.0
    for instead in (grounds.say * grounds.shares_of(question.pool, row), grounds.say):
        if given.sum() > 0:
            break
        given = instead
    given = weight * given / given.sum()
    order = np.argsort(-given, kind="stable")
    return tuple(
        TaskShare(
            task_id=question.pool.tasks[grounds.rows[place]].task_id,
            probability=float(choice.probabilities[grounds.rows[place]]),
            share=float(given[place]),
        )
        for place in order[given[order] > 0]
    )


def _measured_set(question: Question, decision: Decision, each: Considered) -> MeasuredSet:
    found, pool = each.composition, question.pool
    is_served = each.served and decision.action is Action.ADAPTERS
    return MeasuredSet(
        task_id=pool.tasks[each.task].task_id,
        name=found.measured.name,
        members=tuple(
            WeightedArm(pool.arms[row], float(weight))
            for row, weight in zip(found.arms, found.weights, strict=True)
        ),
        score=found.measured.score,
        count=found.measured.count,
        gain=found.measured.gain,
        gain_error=found.measured.gain_error,
        expected_utility=each.utility,
        served=is_served,
        reason=decision.reason if each.served and not is_served else each.reason,
    )


def _next_best(
    question: Question, choice: Choice, kept: Floats, decision: Decision, best: Sequence[int]
) -> NextBest | None:
    served = 0 if decision.action is Action.BASE else choice.single
    row = next((row for row in best if kept[row] == 0 and row != served), None)
    if row is None:
        return None
    utility = _utility(choice, row)
    return NextBest(question.pool.arms[row], utility, decision.expected_utility - utility)


def _why_not(question: Question, choice: Choice, kept: Floats, decision: Decision, name: str) -> WhyNot:
    said = _base_served(name, decision.reason, decision.expected_utility)
    answer = (said if decision.action is Action.BASE else None) or _no_part(question, name)
    if answer is not None:
        return answer
    rows = question.pool.arm_rows[name]
    row = max(rows, key=lambda row: (kept[row], choice.known[row], choice.utilities[row]))
    utility = _utility(choice, row)
    if kept[row] > 0:
        return WhyNot(name, Fate.SERVED, f"it is served, with {kept[row]:.3f} of the weight", utility)
    if not choice.known[row]:
        return _unknown(question, choice, decision, row)
    if decision.action is Action.REFUSE or (decision.action is Action.BASE and choice.single > 0):
        return WhyNot(name, Fate.POLICY, decision.reason, utility)
    return _outdone(question, choice, row)


def _base_served(name: str, reason: str, utility: float) -> WhyNot | None:
    """Returns that the base is served, if it is the base that somebody asks about."""
    return WhyNot(name, Fate.SERVED, f"the base is served: {reason}", utility) if name == BASE else None


def _no_part(question: Question, name: str) -> WhyNot | None:
    """Returns why an adapter takes no part, or None if it does."""
    pool = question.pool
    if name in pool.arm_rows:
        taking_part = question.arms[list(pool.arm_rows[name])].any()
        return None if taking_part else WhyNot(name, Fate.EXCLUDED, "the request excludes it")
    versions = [adapter for adapter in pool.adapters if adapter.adapter_id == name]
    if not versions:
        said = f"pool {pool.pool_id!r} has no adapter {name[:80]!r} that is active or was"
        return WhyNot(name, Fate.UNKNOWN, said)
    return WhyNot(name, Fate.NOT_ROUTABLE, _state(max(versions, key=lambda one: one.version)))


def _state(adapter: Adapter) -> str:
    said = adapter.refusal.removeprefix("ADAPTER_").replace("_", " ").lower()
    state = f"is {said}" if said else "takes no part in new decisions and may only be pinned"
    successor = f"; its successor is {adapter.successor!r}" if adapter.successor else ""
    return f"version {adapter.version}, the newest, {state}{successor}"


def _unknown(question: Question, choice: Choice, decision: Decision, row: int) -> WhyNot:
    """Returns why nothing is known of an arm that takes part."""
    pool, grounds = question.pool, choice.grounds
    name = pool.arms[row].adapter_id
    if not len(grounds.rows):
        return WhyNot(name, Fate.UNMEASURED, decision.reason)
    if (pool.columns[grounds.rows] == row).any():
        return WhyNot(name, Fate.EXCLUDED, f"strategy {decision.strategy!r} does not take it for an arm")
    tasks = [pool.tasks[task].task_id for task in grounds.rows[:NAMED_TASKS]]
    more = len(grounds.rows) - len(tasks)
    named = ", ".join(tasks) + (f" and {more} more" if more else "")
    return WhyNot(
        name,
        Fate.UNMEASURED,
        f"it was measured on none of the tasks that decide ({named}), or is not among the best 64 there, and "
        "so counts as 0",
    )


def _outdone(question: Question, choice: Choice, row: int) -> WhyNot:
    """Returns why an arm that was measured is not served."""
    pool, grounds = question.pool, choice.grounds
    name, best = pool.arms[row].adapter_id, pool.arms[choice.single].adapter_id
    utility, most = _utility(choice, row), _utility(choice, choice.single)
    expected = f"it is expected to have {utility:.3f} of the best score"
    if choice.composition is not None:
        said = f"{expected}, the composition that is served {choice.composition.utility:.3f}"
        return WhyNot(name, Fate.WORTH_LESS, said, utility)
    if choice.weights[row] > 0:
        said = f"{expected} and is the best of a task, but others have more weight: raise max_adapters"
        return WhyNot(name, Fate.BEYOND_MAX_ADAPTERS, said, utility)
    if utility >= most:
        said = f"{expected}, but is the best of none of the tasks that give weight"
        return WhyNot(name, Fate.BEST_OF_NO_TASK, said, utility)
    own, theirs = grounds.shares_of(pool, row), grounds.shares_of(pool, choice.single)
    place = int(np.argmax(grounds.say * (theirs - own)))
    task_id = pool.tasks[grounds.rows[place]].task_id
    probability = choice.probabilities[grounds.rows[place]]
    return WhyNot(
        name,
        Fate.WORTH_LESS,
        f"{expected}, {best!r} {most:.3f}; it loses most on {task_id!r}, of probability {probability:.3f}: "
        f"{own[place]:.3f} of the best score there, {best!r} {theirs[place]:.3f}",
        utility,
        task_id,
    )
