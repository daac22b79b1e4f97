"""From a query's vector to a decision: who takes part, what a strategy says, what the pool's policy says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lorauter.errors import InvalidArgument
from lorauter.routing.all_round import all_round
from lorauter.routing.compiled import CompiledPool, compile_pool
from lorauter.routing.decision import (
    MOST_ADAPTERS,
    MOST_EXCLUDED,
    MOST_TAGS,
    MOST_WHY_NOT,
    Action,
    Decision,
    RouteOptions,
    TaskMatch,
    WeightedArm,
)
from lorauter.routing.explaining import explain, explain_nothing
from lorauter.routing.fitting import UNTYPICAL_BELOW
from lorauter.routing.model import Pool, Vector
from lorauter.routing.ranking import runners_up
from lorauter.routing.representation import unit
from lorauter.routing.strategies import strategy_named
from lorauter.routing.strategies.strategy import (
    Choice,
    Considered,
    Floats,
    Mask,
    Query,
    Question,
    Rows,
    best_rows,
    cosines,
)

_NO_TASK = "no task takes part: the pool has none, or the request's tags and exclusions leave none"
_NOT_MEASURED = "no adapter that may be served was measured on any task that takes part"
_BEST = "adapters measured best on the tasks that the query resembles"
_BASE_BEST = "the base is expected to score at least as well as any single adapter"


def decide(pool: CompiledPool | Pool, query: Query | Vector, options: RouteOptions | None = None) -> Decision:
    """Returns the decision of a query on one pool; the same inputs give the same decision.

    ``query`` is a vector (d,) of the pool's encoder (scaled to length 1 here), or a Query. Pass a
    CompiledPool where more than one query comes.
    Raises InvalidArgument (INVALID_VECTORS, and those of check_options).
    """
    options = options or RouteOptions()
    check_options(options)
    compiled = pool if isinstance(pool, CompiledPool) else compile_pool(pool)
    question = _question(compiled, query if isinstance(query, Query) else Query(query), options)
    if not question.tasks.any():
        return _base_decision(question, options, _NO_TASK)
    choice = strategy_named(options.strategy).choose(question, options.max_adapters)
    choice, action, reason = _acted_on(question, choice)
    kept = _truncated(choice, options.max_adapters)
    if action is not Action.ADAPTERS:
        kept = np.zeros(len(kept))
    single = choice.single if action is not Action.BASE else 0
    decision = Decision(
        strategy=options.strategy,
        action=action,
        reason=reason,
        adapters=_weighted_set(compiled, kept),
        best_single=compiled.arms[max(single, 0)],
        expected_utility=min(1.0, float(choice.utilities[max(single, 0)])),
        tasks=_matches(question, choice, options.task_count),
        typicality=choice.typicality,
        measured=choice.composition is not None or int(np.count_nonzero(kept)) <= 1,
        runners_up=runners_up(question, choice) if action is Action.ADAPTERS else (),
    )
    if not options.explain:
        return decision
    return replace(decision, explanation=explain(question, choice, kept, decision, options.why_not))


def check_options(options: RouteOptions) -> None:
    """Raises InvalidArgument for options that cannot be met.

    Reasons: UNKNOWN_STRATEGY, MAX_ADAPTERS_OUT_OF_RANGE, TOO_MANY_WHY_NOT, TOO_MANY_NAMES.
    """
    strategy_named(options.strategy)
    if not 1 <= options.max_adapters <= MOST_ADAPTERS:
        raise InvalidArgument(
            "MAX_ADAPTERS_OUT_OF_RANGE",
            f"max_adapters is {options.max_adapters}: give 1 to {MOST_ADAPTERS}, or 0 for 3",
            field="max_adapters",
        )
    if len(options.why_not) > MOST_WHY_NOT:
        raise InvalidArgument(
            "TOO_MANY_WHY_NOT",
            f"why_not names {len(options.why_not)} adapters: ask about at most {MOST_WHY_NOT} at a time",
            field="why_not",
        )
    for field, names, most in (
        ("tags", options.tags, MOST_TAGS),
        ("exclude_tasks", options.exclude_tasks, MOST_EXCLUDED),
        ("exclude_adapters", options.exclude_adapters, MOST_EXCLUDED),
    ):
        if len(names) > most:
            raise InvalidArgument(
                "TOO_MANY_NAMES", f"{field} has {len(names)} names: send at most {most:,}", field=field
            )


def _question(pool: CompiledPool, query: Query, options: RouteOptions) -> Question:
    vector = np.asarray(query.vector, dtype=np.float32)
    direction = unit(vector) if vector.ndim == 1 else vector
    if direction.ndim != 1 or not np.isfinite(direction).all():
        raise InvalidArgument("INVALID_VECTORS", "the query's vector is not a finite one-dimensional array")
    if pool.tasks and len(direction) != pool.directions.shape[1]:
        raise InvalidArgument(
            "INVALID_VECTORS",
            f"the query's vector has {len(direction)} dimensions, the pool's {pool.directions.shape[1]}: "
            "encode it with the pool's encoder",
        )
    return Question(pool, query, direction, _tasks(pool, options), _arms(pool, options))


def _tasks(pool: CompiledPool, options: RouteOptions) -> Mask:
    if not options.tags and not options.exclude_tasks:
        return pool.all_tasks
    tasks = pool.all_tasks.copy()
    for tag in options.tags:
        carrying = np.zeros(len(pool.tasks), dtype=bool)
        carrying[pool.carriers.get(tag, [])] = True
        tasks &= carrying
    tasks[[pool.task_rows[name] for name in options.exclude_tasks if name in pool.task_rows]] = False
    return tasks


def _arms(pool: CompiledPool, options: RouteOptions) -> Mask:
    if not options.exclude_adapters:
        return pool.all_arms
    arms = pool.all_arms.copy()
    for name in options.exclude_adapters:
        arms[list(pool.arm_rows.get(name, ()))] = False
    return arms


def _base_decision(question: Question, options: RouteOptions, reason: str) -> Decision:
    return Decision(
        strategy=options.strategy,
        action=Action.BASE,
        reason=reason,
        adapters=(),
        best_single=question.pool.arms[0],
        expected_utility=0.0,
        tasks=(),
        typicality=0.0,
        explanation=explain_nothing(question, reason, options.why_not) if options.explain else None,
    )


def _acted_on(question: Question, choice: Choice) -> tuple[Choice, Action, str]:
    """Returns the choice, another one where the pool's policy has a say, what to do with it, and why."""
    limit = question.pool.profile.constants.get("untypical_below", UNTYPICAL_BELOW)
    policy = question.pool.untypical_policy if choice.typicality < limit else ""
    said = f"the query is untypical ({choice.typicality:.3f}, below {limit:g})"
    if policy == "REFUSE":
        return choice, Action.REFUSE, f"{said} and the pool's policy refuses such queries"
    if policy == "BASE":
        return choice, Action.BASE, f"{said} and the pool's policy gives such queries to the base"
    if choice.single < 0:
        return choice, Action.BASE, _NOT_MEASURED
    if policy == "ALL_ROUND":
        choice = all_round(question, choice)
        reason = f"{said} and the pool's policy gives such queries to what does best over all tasks"
        return choice, Action.BASE if choice.single == 0 else Action.ADAPTERS, reason
    if choice.single == 0 and choice.composition is None:
        return choice, Action.BASE, _BASE_BEST
    reason = _composed(question, choice.composition) if choice.composition else _BEST
    if policy:
        return choice, Action.ADAPTERS, f"{said}; the pool's policy routes it all the same: {reason}"
    return choice, Action.ADAPTERS, reason


def _composed(question: Question, served: Considered) -> str:
    measured, task = served.composition.measured, question.pool.tasks[served.task]
    return (
        f"a composition that gained {measured.gain:.3f} ± {measured.gain_error:.3f} over the best single "
        f"adapter on task {task.task_id!r}"
    )


def _truncated(choice: Choice, max_adapters: int) -> Floats:
    """Returns the weights with all but the ``max_adapters`` largest set to 0, scaled to sum to 1."""
    given = np.flatnonzero(choice.weights)
    order = given[np.argsort(-choice.weights[given], kind="stable")][:max_adapters]
    kept = np.zeros(len(choice.weights))
    kept[order] = choice.weights[order]
    if choice.single > 0 and kept[1:].sum() == 0:
        kept[:] = 0.0
        kept[choice.single] = 1.0
    total = kept.sum()
    return kept / total if total > 0 else kept


def _weighted_set(pool: CompiledPool, weights: Floats) -> tuple[WeightedArm, ...]:
    rows: Rows = np.flatnonzero(weights > 0)
    order = rows[np.argsort(-weights[rows], kind="stable")]
    return tuple(WeightedArm(pool.arms[row], float(weights[row])) for row in order)


def _matches(question: Question, choice: Choice, count: int) -> tuple[TaskMatch, ...]:
    rows = best_rows(choice.probabilities, question.tasks, count)
    similarities = cosines(question.pool, question.direction, rows)
    order = np.lexsort((rows, -similarities, -choice.probabilities[rows]))[:count]
    return tuple(
        TaskMatch(
            task_id=question.pool.tasks[row].task_id,
            similarity=float(similarity),
            probability=float(choice.probabilities[row]),
            measured=question.pool.tasks[row].is_measured,
        )
        for row, similarity in zip(rows[order], similarities[order], strict=True)
    )
