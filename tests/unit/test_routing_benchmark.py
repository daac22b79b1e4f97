"""The routing benchmark measures what it says: its figures by hand, its regimes, its data in order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.flan import Flan, read_flan
from benchmarks.flan_pools import REGIMES, FlanPools, by_task
from benchmarks.refitting import EXAMPLES, WORDS, pool, synthetic
from benchmarks.routing import auroc, calibration_error, churn_figures, routing
from lorauter.encoder import Encoder
from lorauter.routing.churn import churn
from lorauter.routing.fitting import refit

TEXTS = {
    "sum": ("maths", ["add 3 and 4", "add 7 and 1"], ["add 2 and 9"]),
    "product": ("maths", ["multiply 3 by 4", "multiply 7 by 1"], ["multiply 2 by 9", "multiply 7 by 1"]),
    "capital": ("places", ["name the capital of Peru", "name the capital of Chad"], ["the capital of Fiji"]),
}
SCORES = [[0.9, 0.5, 0.1], [0.4, 0.8, 0.2], [0.1, 0.2, 0.7]]


@pytest.fixture
def flan(tmp_path: Path) -> Flan:
    names = list(TEXTS)

    def write(file: str, rows: list[dict[str, str]]) -> None:
        (tmp_path / file).write_text("\n".join(map(json.dumps, rows)))

    write("tasks.jsonl", [{"task": name, "cluster": TEXTS[name][0]} for name in names])
    # the files' order is not the matrix's
    backwards = names[::-1]
    write("validation.jsonl", [{"task": n, "input": text} for n in backwards for text in TEXTS[n][1]])
    write("queries.jsonl", [{"task": n, "input": text} for n in backwards for text in TEXTS[n][2]])
    lines = [",".join(["task", *names])]
    lines += [
        ",".join([name, *(str(100 * score) for score in row)])
        for name, row in zip(names, SCORES, strict=True)
    ]
    (tmp_path / "affinity.csv").write_text("\n".join(lines))
    return read_flan(tmp_path)


def test_queries_of_validation_sets_are_left_out_and_vectors_stay_with_their_texts(flan: Flan) -> None:
    assert flan.queries["product"] == ["multiply 2 by 9"]
    assert flan.kept_queries.tolist() == [True, True, False, True]
    rows = np.arange(9, dtype=np.float32)[:, None]
    parts = by_task(flan, rows)
    assert parts.validation["capital"].ravel().tolist() == [0, 1]
    assert parts.validation["sum"].ravel().tolist() == [4, 5]
    assert {name: part.ravel().tolist() for name, part in parts.queries.items()} == {
        "capital": [6],
        "product": [7],
        "sum": [8],
    }


def test_regimes_bar_what_they_say_when_queries_are_routed(flan: Flan, encoder: Encoder) -> None:
    groups = [*flan.validation.values(), *flan.queries.values()]
    vectors = encoder.encode([text for group in groups for text in group])
    pools = FlanPools(flan, by_task(flan, vectors))
    for strategy in ("default", "paper", "paper_tuned"):
        for regime in REGIMES:
            for row, decisions in pools.decisions(regime, strategy):
                name = flan.tasks[row]
                tasks, adapters = pools.barred(row, regime)
                for decision in decisions:
                    assert decision.best_single.adapter_id not in np.array(flan.tasks)[adapters]
                    listed = {match.task_id for match in decision.tasks}
                    assert not listed & set(np.array(flan.tasks)[tasks])
                    if regime == "non_ood":
                        assert decision.tasks[0].task_id == name
                        assert decision.best_single.adapter_id == name


def test_churn_counts_queries_of_other_clusters_whose_adapter_changes_as_a_task_comes(
    flan: Flan, encoder: Encoder
) -> None:
    groups = [*flan.validation.values(), *flan.queries.values()]
    vectors = encoder.encode([text for group in groups for text in group])
    pools = FlanPools(flan, by_task(flan, vectors))
    moved = {
        flan.tasks[row]: [one != other for one, other in zip(before, after, strict=True)]
        for row, before, after, _ in pools.arrivals()
    }
    assert set(moved) == set(flan.tasks)
    assert all(moved[name][place] for place, name in enumerate(flan.tasks))  # each to its own adapter
    found = churn_figures(flan, pools)
    unrelated = [np.mean(moved["sum"][2:]), np.mean(moved["product"][2:]), np.mean(moved["capital"][:2])]
    assert found["mean"] == pytest.approx(np.mean(unrelated), abs=1e-5)
    assert found["worst"] == pytest.approx(max(unrelated), abs=1e-5)
    assert found["other_tasks"]["worst"] >= found["worst"]


def test_refits_are_timed_on_tasks_that_can_be_told_apart() -> None:
    tasks = synthetic(6, seed=0)
    assert [len(task.terms) for task in tasks] == [EXAMPLES] * 6
    assert np.linalg.norm(tasks[0].vectors, axis=1) == pytest.approx(np.ones(EXAMPLES), abs=1e-6)
    assert tasks[0].total.counts.sum() == EXAMPLES * (3 * WORDS - 3)
    profile = refit(tasks).profile
    assert profile.figures["loo_top1"] > 0.9
    known = pool(tasks, profile, seed=0)
    assert churn(known, known, tasks) == 0.0


def test_auroc_and_calibration_are_those_of_the_textbook() -> None:
    assert auroc(np.array([0.9, 0.8, 0.4]), np.array([0.4, 0.1])) == pytest.approx((2 + 2 + 1.5) / 6)
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


def test_tasks_are_judged_and_scores_are_not_when_nobody_knows_any(flan: Flan, tmp_path: Path) -> None:
    scored = routing(flan, tmp_path, 0)
    (tmp_path / "affinity.csv").unlink()
    report = routing(read_flan(tmp_path, needs_scores=False), tmp_path, 0)
    assert set(report["strategies"]) == {"default", "paper", "paper_tuned"}
    for name, figures in report["strategies"].items():
        assert "single" not in figures
        for key in ("top1", "top3", "log_loss", "ece", "auroc_unseen_task"):
            assert figures[key] == scored["strategies"][name][key]
    assert "honest_non_ood" not in report
    with pytest.raises(FileNotFoundError, match="affinity"):
        read_flan(tmp_path)
