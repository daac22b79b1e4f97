"""Churn: which known queries go to another adapter when tasks come, change or go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lorauter.routing import TaskExamples
from lorauter.routing.bm25 import NO_TERMS
from lorauter.routing.churn import churn
from lorauter.routing.fitting import make_profile
from lorauter.routing.model import Adapter, Affinity, Pool, Task

PLAIN = {"shrinkage": 1.0, "dense_weight": 8.0, "lexical_weight": 0.0, "default_tasks": 3.0}
AXES = np.eye(4, dtype=np.float32)
A, B, C = {"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}, {"c": 0.9}


def task(name: str, centroid: np.ndarray, scores: Mapping[str, float], version: int = 1) -> Task:
    affinities = tuple(Affinity(id_, 1, score, 20, 0.1) for id_, score in scores.items())
    return Task(name, version, "exact_match", frozenset(), 4, centroid, NO_TERMS, affinities)


def pool(tasks: Sequence[Task], adapters: str = "abc") -> Pool:
    arms = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in adapters)
    return Pool("p", "m", (), "ROUTE", make_profile(PLAIN, {}), tuple(tasks), arms, ())


def asked(name: str, *vectors: np.ndarray) -> TaskExamples:
    return TaskExamples(name, np.stack(vectors))


BETWEEN = (0.8 * AXES[1] + 0.6 * AXES[2]).astype(np.float32)
BEFORE = pool([task("one", AXES[0], A), task("two", AXES[1], B)])
AFTER = pool([*BEFORE.tasks, task("three", BETWEEN, C)])
EXAMPLES = [asked("one", AXES[0], AXES[0]), asked("two", AXES[1], BETWEEN), asked("three", BETWEEN)]


def test_churn_is_the_share_of_known_queries_that_a_new_task_attracts() -> None:
    assert churn(BEFORE, AFTER, EXAMPLES) == 0.25
    assert churn(AFTER, BEFORE, EXAMPLES[:2]) == 0.25
    assert churn(BEFORE, BEFORE, EXAMPLES) == 0.0


def test_queries_are_those_of_tasks_that_did_not_change() -> None:
    changed = pool([BEFORE.tasks[0], task("two", AXES[1], C, version=2)])
    assert churn(BEFORE, changed, EXAMPLES[:2]) == 0.0
    assert churn(pool([]), AFTER, EXAMPLES) is None
    assert churn(BEFORE, pool([]), []) is None


def test_new_measurements_and_adapters_are_no_churn() -> None:
    measured = [replace(each, affinities=task("", AXES[0], C).affinities) for each in BEFORE.tasks]
    assert churn(pool(BEFORE.tasks, "ab"), pool(measured, "abc"), EXAMPLES) == 0.0


@pytest.mark.parametrize("most", [1, 3])
def test_evenly_spaced_queries_stand_for_all_when_there_are_many(most: int) -> None:
    many = [asked("one", *[AXES[0]] * 9), asked("two", *[BETWEEN] * 9)]
    assert churn(BEFORE, AFTER, many, most) == pytest.approx({1: 0.0, 3: 1 / 3}[most])
