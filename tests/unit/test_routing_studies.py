"""The routing studies measure what they say: their channels are the product's, their splits leave out what
they should, their differences and errors are those of the textbook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.flan import Flan
from benchmarks.flan_pools import REGIMES, Embedded
from benchmarks.studies_channels import PAPER, k_means
from benchmarks.studies_lab import DEFAULT, Dense, Texts, Words, conformal, fit, read_texts, softmax
from benchmarks.studies_models import encoded
from benchmarks.studies_plot import draw
from benchmarks.studies_runs import (
    QUERIES,
    VALIDATION,
    Outcome,
    barred_adapters,
    compared,
    likeliest,
    outcome,
    paired,
    percent,
    run,
    served,
    shares_of,
)
from benchmarks.studies_scores import RULES, remeasured, reranked
from benchmarks.studies_sets import PARTS, _cut, some_of
from benchmarks.studies_templates import templates_of
from benchmarks.studies_untypical import Below, by_rule, flagged_of_few, risk_coverage, tempered, widened
from lorauter.encoder import Encoder
from lorauter.routing import represent, term_frequencies
from lorauter.routing.bm25 import lexicon, terms_of
from lorauter.routing.whitening import whitener

NAMES = ("add", "multiply", "capital", "river")
TEXTS = {
    "add": "add {} and {} together, please",
    "multiply": "multiply the numbers {} and {}",
    "capital": "name the capital of country {} on continent {}",
    "river": "which river flows through city {} of province {}",
}
SCORES = np.array([[0.9, 0.6, 0.1, 0.2], [0.5, 0.8, 0.2, 0.1], [0.1, 0.2, 0.7, 0.5], [0.2, 0.1, 0.3, 0.4]])


@pytest.fixture(scope="module")
def flan() -> Flan:
    def texts(start: int) -> dict[str, list[str]]:
        return {name: [TEXTS[name].format(start + i, 7 * i + 3) for i in range(6)] for name in NAMES}

    clusters = ("maths", "maths", "places", "places")
    return Flan(NAMES, clusters, SCORES, texts(0), texts(50), np.ones(24, dtype=bool))


@pytest.fixture(scope="module")
def vectors(flan: Flan, encoder: Encoder) -> Embedded:
    return encoded(flan, encoder)


@pytest.fixture(scope="module")
def sides(flan: Flan, vectors: Embedded) -> tuple[Texts, Texts]:
    return read_texts(flan, vectors)


def test_words_are_those_of_the_product(flan: Flan, vectors: Embedded, sides: tuple[Texts, Texts]) -> None:
    totals = [represent(vectors.validation[name], flan.validation[name]).terms for name in NAMES]
    product = lexicon([terms_of(total) for total in totals])
    expected = [
        product.scores(terms_of(term_frequencies(text))) for name in NAMES for text in flan.queries[name]
    ]
    assert Words()(*sides) == pytest.approx(np.array(expected), abs=1e-5)
    assert Words(saturation=None)(*sides) != pytest.approx(np.array(expected), abs=1e-3)


def test_dense_scores_are_those_of_the_product(sides: tuple[Texts, Texts]) -> None:
    known, asked = sides
    centroids = np.stack([known.vectors[known.owners == row].mean(axis=0) for row in range(4)])
    rest = known.vectors - centroids[known.owners]
    scatter = rest.T @ rest * rest.shape[1] / (rest**2).sum()
    white = whitener(scatter, 0.3)
    mean = centroids.mean(axis=0)

    def scaled(rows: np.ndarray) -> np.ndarray:
        moved = (rows - mean) @ white
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    expected = scaled(asked.vectors) @ scaled(centroids).T
    assert Dense(0.3)(known, asked) == pytest.approx(expected, abs=1e-5)


def test_weights_have_the_least_loss_on_texts_held_out(sides: tuple[Texts, Texts]) -> None:
    fitted = fit(DEFAULT, sides[0])
    assert (fitted.weights >= 0).all()
    assert len(fitted.best) == len(sides[0])
    alone = fit(replace(DEFAULT, alternatives=((Words(),),)), sides[0])
    assert fitted.loss <= alone.loss
    posterior = softmax(fitted.scores(sides[1]))
    assert (posterior.argmax(axis=1) == sides[1].owners).all()


def test_regimes_bar_what_they_say_on_both_sides(flan: Flan, sides: tuple[Texts, Texts]) -> None:
    found = run(flan, DEFAULT, *sides)
    clusters = np.array([0, 0, 1, 1])
    for side in (VALIDATION, QUERIES):
        for regime in REGIMES:
            asked = found[side, regime]
            assert asked.posterior.sum(axis=1) == pytest.approx(1)
            own = asked.posterior[np.arange(24), asked.own]
            mates = asked.posterior * (clusters[asked.own][:, None] == clusters[None, :])
            assert (own == 0).all() == (regime in ("ood", "unseen_cluster"))
            assert (mates == 0).all() == (regime == "unseen_cluster")
            barred = barred_adapters(flan, asked.own, regime)
            assert barred.sum(axis=1).tolist() == [{"non_ood": 0, "unseen_cluster": 2}.get(regime, 1)] * 24
    assert percent(
        flan, asked.own, served(flan, found[QUERIES, "non_ood"], "non_ood", SCORES)
    ) == pytest.approx(100)


def test_validation_texts_are_held_out_when_nothing_is_barred(flan: Flan, sides: tuple[Texts, Texts]) -> None:
    found = run(flan, DEFAULT, *sides)[VALIDATION, "non_ood"]
    first = np.arange(24) % 6 % 5 == 0  # both of a task's six that are of the first of five folds
    rest = outcome(flan, fit(DEFAULT, sides[0].only(~first)), sides[0].only(first))
    assert found.posterior[first].tolist() == rest.posterior.tolist()
    whole = outcome(flan, fit(DEFAULT, sides[0]), sides[0])
    assert found.posterior[first].tolist() != whole.posterior[first].tolist()


def test_differences_and_errors_are_those_by_hand(flan: Flan) -> None:
    own = np.array([0, 0, 1, 2, 3])
    ours, theirs = np.array([0.9, 0.9, 0.8, 0.7, 0.4]), np.array([0.9, 0.6, 0.8, 0.5, 0.4])
    by_task = {"add": [0.9, 0.6], "multiply": [0.8], "capital": [0.5], "river": [0.4]}
    assert percent(flan, own, theirs) == pytest.approx(flan.percent_of_oracle(by_task))
    parts = np.array([100 * 0.3 / 2.6 / 2, 0.0, 100 * 0.2 / 1.1 / 2, 0.0])
    expected = parts.sum(), 2 * parts.std(ddof=1)
    assert paired(flan, own, ours, theirs) == pytest.approx(expected)


def test_paper_serves_the_nearest_tasks_best_adapter(flan: Flan, sides: tuple[Texts, Texts]) -> None:
    found = run(flan, PAPER, *sides)
    asked = found[QUERIES, "non_ood"]
    assert ((asked.posterior > 0).sum(axis=1) == 3).all()
    nearest = asked.posterior.argmax(axis=1)
    expected = SCORES[asked.own, SCORES[nearest].argmax(axis=1)]
    assert served(flan, asked, "non_ood", shares_of(SCORES)).tolist() == expected.tolist()
    same = compared(flan, found, found, shares_of(SCORES), QUERIES)
    assert set(same.values()) == {(0.0, 0.0)}


def test_likeliest_keeps_the_largest_probabilities() -> None:
    kept = likeliest(np.array([[0.5, 0.1, 0.4], [0.2, 0.5, 0.3]]), 2)
    assert kept == pytest.approx(np.array([[5 / 9, 0, 4 / 9], [0, 5 / 8, 3 / 8]]))


def test_templates_are_told_by_their_wording_whatever_the_task() -> None:
    texts = [
        "Tell me whether this is so: cats bark at night because they can and nobody else will ever do it\n"
        "OPTIONS:\n- yes\n- no",
        "Tell me whether this is so: a river runs uphill when nobody looks at it for long enough to see\n"
        "OPTIONS:\n- yes\n- no",
        "Oranges are blue in the early light of a grey morning. Is that true or is it false?\n"
        "OPTIONS:\n- yes\n- no",
    ]
    groups = templates_of(texts)
    assert groups[0] == groups[1] != groups[2]
    middle = (
        "one two three four five six seven eight nine ten eleven twelve {} thirteen b c d e f g h i j k l m"
    )
    assert (
        len(set(templates_of([middle.format("same words in the middle"), "same words in the middle"]))) == 2
    )


def test_split_leaves_no_template_and_as_many_at_random(sides: tuple[Texts, Texts]) -> None:
    known = replace(sides[0].corpus, templates=np.arange(48) % 11)
    validation, queries = (Texts(known, side.rows) for side in sides)
    for part in range(PARTS):
        rest, at_random, asked = _cut(validation, queries, part)
        assert not set(rest.templates) & set(asked.templates)
        assert np.bincount(rest.owners).tolist() == np.bincount(at_random.owners).tolist()


def test_some_of_each_task_are_drawn_and_others_with_another_seed() -> None:
    owners = np.repeat([0, 1, 2], [10, 3, 10])
    first, second = (some_of(owners, 5, seed) for seed in (0, 1))
    assert np.bincount(owners[first]).tolist() == [5, 3, 5]
    assert (first != second).any()


def test_k_means_finds_what_lies_apart() -> None:
    points = np.concatenate([np.zeros((5, 2)), np.full((4, 2), 9.0)])
    assert sorted(k_means(points, 2).tolist()) == [[0, 0], [9, 9]]
    assert len(k_means(points[:1], 3)) == 1


def test_conformal_values_flag_no_more_than_they_say() -> None:
    assert conformal(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 9.0])).tolist() == [0.25, 0.75, 1.0]
    shares = flagged_of_few(0)
    for alpha in ("0.01", "0.02", "0.05", "0.1", "0.2"):
        for count in (20, 60, 960):
            assert shares[f"by rank, n={count}"][alpha] <= float(alpha) + 0.005
            assert shares[f"smoothed rank, n={count}"][alpha] <= float(alpha) + 0.005
        assert shares["smoothed rank, n=60"]["0.1"] == pytest.approx(0.1, abs=0.01)
    assert shares["between quantiles, n=20"]["0.01"] > 0.03


def test_rules_widen_and_sharpen_what_they_should() -> None:
    asked = Outcome(np.array([0, 0]), np.array([[0.8, 0.2, 0.0], [0.8, 0.2, 0.0]]), np.array([0.01, 0.6]))
    mixed = by_rule({("queries", "ood"): asked}, Below(0.05, 0.5))["queries", "ood"]
    assert mixed.posterior == pytest.approx(np.array([[0.65, 0.35, 0.0], [0.8, 0.2, 0.0]]))
    assert widened(asked, np.ones(2)).posterior == pytest.approx(np.array([[0.5, 0.5, 0.0]] * 2))
    assert tempered(asked, np.array([2.0, 1.0])).posterior[0] == pytest.approx([0.64 / 0.68, 0.04 / 0.68, 0])


def test_scores_are_drawn_less_the_more_examples_there_are() -> None:
    for name, rule in RULES.items():
        assert np.abs(rule(SCORES, 10_000) - SCORES).max() < 0.02, name
    drawn = RULES["towards the task's mean"](SCORES, 4)
    assert drawn.mean(axis=1) == pytest.approx(SCORES.mean(axis=1))
    assert (drawn.std(axis=1) < SCORES.std(axis=1)).all()
    assert (drawn.argsort(axis=1) == SCORES.argsort(axis=1)).all()


def test_other_models_scores_are_as_like_as_they_say() -> None:
    random = np.random.default_rng(0)
    scores = random.random((40, 60))
    alike, unlike = (reranked(correlation)(scores, random) for correlation in (0.8, 0.0))
    assert np.sort(alike, axis=1) == pytest.approx(np.sort(scores, axis=1))
    mean = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(scores, alike, strict=True)])
    assert mean == pytest.approx(0.8, abs=0.05)
    assert abs(np.corrcoef(unlike.ravel(), scores.ravel())[0, 1]) < 0.1
    again = remeasured(scores, random)
    assert 0 <= again.min() <= again.max() <= 1


def test_all_queries_score_the_regimes_figure_and_the_curve_is_drawn(
    flan: Flan, sides: tuple[Texts, Texts], tmp_path: Path
) -> None:
    asked = run(flan, DEFAULT, *sides)[QUERIES, "unseen_cluster"]
    curves = risk_coverage(flan, asked, "unseen_cluster", shares_of(SCORES))
    whole = percent(flan, asked.own, served(flan, asked, "unseen_cluster", shares_of(SCORES)))
    assert [curve["percent"][-1] for curve in curves.values()] == pytest.approx([whole] * 3)
    draw({"known": curves, "unseen": curves}, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 5000
