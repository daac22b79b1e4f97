"""Measured compositions: what each is expected to be worth, and whether one of them is to be served."""

from __future__ import annotations

import numpy as np

from lorauter.routing.compiled import CompiledSet
from lorauter.routing.strategies.strategy import SERVED, Considered, Floats, Question, Rows


def considered(
    question: Question, tasks: Rows, say: Floats, utilities: Floats, single: int, max_adapters: int
) -> tuple[Considered, ...]:
    """Returns the compositions of ``tasks`` (K,), which have ``say`` (K,), and which of them is served.

    ``utilities`` (A,) are those of single arms, ``single`` the best one. On its own task a composition is
    worth what was measured; on others, where nothing was, the weighted mean of its members. It is served if
    it beat the best single arm where it was measured, and is expected to here.
    """
    rivals: list[tuple[float, int]] = []
    found: list[tuple[CompiledSet, int, float, str]] = []
    least = float(utilities[single]) if single >= 0 else 0.0
    for place, task in enumerate(tasks.tolist()):
        for each in question.pool.sets[task]:
            utility = _utility(question, each, task, float(say[place]), utilities)
            reason = _barred(question, each, max_adapters)
            if not reason and utility <= least:
                reason = (
                    f"it is expected to be worth {utility:.3f}, not more than the best single's {least:.3f}"
                )
            if not reason:
                rivals.append((-utility, len(found)))
            found.append((each, place, utility, reason))
    best = min(rivals)[1] if rivals else -1
    other = "another composition is expected to be worth more"
    return tuple(
        Considered(each, place, int(tasks[place]), utility, SERVED if row == best else reason or other)
        for row, (each, place, utility, reason) in enumerate(found)
    )


def weights_of_set(composition: CompiledSet, count: int) -> Floats:
    """Returns (count,), the weights of a composition's arms."""
    weights = np.zeros(count)
    weights[composition.arms] = composition.weights
    return weights


def _utility(question: Question, each: CompiledSet, task: int, say: float, utilities: Floats) -> float:
    columns, shares = question.pool.columns[task], question.pool.shares[task]
    own = [float(shares[columns == arm].sum()) for arm in each.arms]
    return float(each.weights @ utilities[each.arms] + say * (each.share - each.weights @ np.array(own)))


def _barred(question: Question, each: CompiledSet, max_adapters: int) -> str:
    if not question.arms[each.arms].all():
        return "the request excludes one of its adapters"
    if len(each.arms) > max_adapters:
        return f"it has {len(each.arms)} adapters, more than max_adapters"
    if not each.measured.wins:
        gain, error = each.measured.gain, each.measured.gain_error
        return f"it gained {gain:+.3f} ± {error:.3f}, not more than one standard error"
    return ""
