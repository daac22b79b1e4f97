"""Strategy default by hand: whitened and lexical scores, the posterior, expected utility, typicality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lorauter.routing import Action, Decision, RouteOptions, TaskExamples, decide, fit_profile, represent
from lorauter.routing.bm25 import NO_TERMS, lexicon, terms_of
from lorauter.routing.examples import Memory
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.left_out import LeftOut, dense_scores, mean_square
from lorauter.routing.lexical import term_frequencies
from lorauter.routing.model import Adapter, Affinity, Pool, Profile, Task
from lorauter.routing.posterior import fit_posterior, fit_weights, log_loss
from lorauter.routing.strategies.strategy import Query
from lorauter.routing.whitening import middle, packed, precision, scatter_of, unpacked
from lorauter.routing.words_left_out import lexical_scores

AXES = np.eye(4, dtype=np.float32)
QUERY = np.array([0.8, 0.6, 0.0, 0.0], dtype=np.float32)
PLAIN = {"shrinkage": 1.0, "dense_weight": 4.0, "lexical_weight": 4.0, "default_tasks": 3.0}


def task(name: str, axis: int, scores: Mapping[str, float], texts: Sequence[str] = ()) -> Task:
    affinities = [Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in scores.items()]
    terms = represent(AXES[:1], texts).terms
    return Task(name, 1, "exact_match", frozenset(), 20, AXES[axis], terms, tuple(affinities))


def pool(tasks: Sequence[Task], profile: Profile | None = None, policy: str = "ROUTE") -> Pool:
    adapters = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in "abc")
    return Pool("p", "m", (), policy, profile or make_profile(PLAIN, {}), tuple(tasks), adapters, ())


THREE = [
    task("t1", 0, {"a": 0.9, "b": 0.3, "base": 0.2}, ["add the numbers", "add these"]),
    task("t2", 1, {"b": 0.8, "a": 0.4, "base": 0.1}, ["name the city", "name a town"]),
    task("t3", 2, {"base": 0.6, "c": 0.5}, ["sort the words", "sort letters"]),
]


def posterior_by_hand(query: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    mean = centroids.mean(axis=0)
    apart, query = centroids - mean, query - mean
    cosines = apart @ query / np.linalg.norm(apart, axis=1) / np.linalg.norm(query)
    mass = np.exp(4.0 * cosines)
    return mass / mass.sum()


def probabilities(decision: Decision) -> dict[str, float]:
    return {match.task_id: match.probability for match in decision.tasks}


def test_best_single_maximises_expected_utility_when_nothing_is_whitened() -> None:
    expected = posterior_by_hand(QUERY, AXES[:3])
    decision = decide(pool(THREE), QUERY)
    assert list(probabilities(decision).values()) == pytest.approx(expected, abs=1e-6)
    shares = np.array([[0.9, 0.3, 0, 0.2], [0.4, 0.8, 0, 0.1], [0, 0, 0.5, 0.6]])
    utilities = expected @ (shares / shares.max(axis=1, keepdims=True))
    assert decision.best_single.adapter_id == "abc"[int(utilities[:3].argmax())]
    assert decision.expected_utility == pytest.approx(utilities.max(), abs=1e-6)


def test_words_decide_when_vectors_do_not() -> None:
    even = unit(np.ones(4))
    for text, adapter in (("add 3 and 4", "a"), ("name the capital", "b")):
        decision = decide(pool(THREE), Query(even, text))
        assert decision.best_single.adapter_id == adapter
    assert decide(pool(THREE), Query(even, "sort these")).action is Action.BASE


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_generalist_is_best_when_no_specialist_is_likely_enough() -> None:
    tasks = [task("t1", 0, {"a": 1.0, "c": 0.9}), task("t2", 1, {"b": 1.0, "c": 0.9}), THREE[2]]
    decision = decide(pool(tasks), unit(np.array([1, 1, 0, 0])))
    assert decision.best_single.adapter_id == "c"
    alone = decide(pool(tasks), unit(np.array([1, 1, 0, 0])), RouteOptions(max_adapters=1))
    assert {one.arm.adapter_id: one.weight for one in alone.adapters} == {"c": 1.0}


def test_ties_go_as_the_task_has_them_when_scores_are_equal() -> None:
    tied = [task("t1", 0, {"c": 0.5, "b": 0.5, "a": 0.5}), *(task(f"t{i}", i, {"base": 1}) for i in (1, 2))]
    assert decide(pool(tied), AXES[0]).best_single.adapter_id == "c"


def test_task_leaves_its_say_to_others_when_it_was_not_measured() -> None:
    decision = decide(pool([*THREE[1:], task("new", 0, {})]), QUERY)
    assert probabilities(decision)["new"] > 0.4
    assert decision.best_single.adapter_id == "b"
    assert decision.expected_utility > 0.9


@pytest.mark.parametrize(
    ("policy", "action"), [("ROUTE", "ADAPTERS"), ("BASE", "BASE"), ("REFUSE", "REFUSE")]
)
def test_policy_decides_when_the_best_score_is_untypical(policy: str, action: str) -> None:
    above = {typicality_name(level, "score"): 10.0 + level for level in TYPICALITY_LEVELS}
    decision = decide(pool(THREE, make_profile(PLAIN | above, {}), policy), QUERY)
    assert (decision.action, decision.typicality) == (action, 0.0)
    below = {typicality_name(level, "score"): level - 10.0 for level in TYPICALITY_LEVELS}
    usual = decide(pool(THREE, make_profile(PLAIN | below, {}), policy), QUERY)
    assert (usual.action, usual.typicality) == (Action.ADAPTERS, 1.0)


def test_lexical_score_is_the_cosine_of_bm25_weights_when_computed_by_hand() -> None:
    texts = [["a a b"], ["a c"]]
    totals = [represent(AXES[:1], each).terms for each in texts]
    words = lexicon([terms_of(total) for total in totals])
    query = term_frequencies("a c x")
    lengths = [sum(total.values()) for total in totals]
    norms, products = [], []
    for total, length in zip(totals, lengths, strict=True):
        weights = {
            term: np.log1p((2.5 - used(term, totals)) / (0.5 + used(term, totals)))
            * count * 3.0 / (count + 2.0 * (0.25 + 0.75 * length / np.mean(lengths)))
            for term, count in total.items()
        }  # fmt: skip
        norms.append(np.linalg.norm(list(weights.values())))
        products.append(sum(weights.get(term, 0.0) * np.sqrt(count) for term, count in query.items()))
    known = [count for term, count in query.items() if any(term in total for total in totals)]
    expected = np.array(products) / np.array(norms) / np.sqrt(sum(known))
    assert words.scores(terms_of(query)) == pytest.approx(expected, abs=1e-6)
    assert words.scores(terms_of(term_frequencies("nothing known"))).tolist() == [0.0, 0.0]


def used(term: int, totals: Sequence[Mapping[int, float]]) -> int:
    return sum(term in total for total in totals)


def drawn(tasks: int = 5, examples: int = 6, dimension: int = 8, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    spread = random.normal(size=(dimension, dimension))
    centers = random.normal(size=(tasks, dimension))
    return [center + random.normal(size=(examples, dimension)) @ spread for center in centers]


def moments(sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stacked = np.concatenate(sets)
    counts = np.array([len(each) for each in sets])
    return stacked.T @ stacked, np.stack([each.sum(axis=0) for each in sets]), counts


def test_dense_scores_equal_the_plain_loop_when_each_example_is_left_out() -> None:
    sets, shrinkage = drawn(), 0.3
    stacked, owners = np.concatenate(sets), np.repeat(np.arange(5), 6)
    centroids = np.stack([each.mean(axis=0) for each in sets])
    scale = mean_square(*moments(sets))
    assert scale == pytest.approx(float(((stacked - centroids[owners]) ** 2).sum()) / 8)
    scatter = scatter_of(*moments(sets))
    assert scatter is not None
    found = dense_scores(
        stacked, owners, np.full((30, 1), 6.0), centroids, precision(scatter, shrinkage), 0.7 / scale
    )
    for place, own in enumerate(owners):
        left = np.delete(np.arange(30), place)
        means = np.stack([stacked[left][owners[left] == each].mean(axis=0) for each in range(5)])
        rest = stacked[left] - means[owners[left]]
        inverse = np.linalg.inv((1 - shrinkage) * rest.T @ rest / scale + shrinkage * np.eye(8))
        query, apart = stacked[place] - means.mean(axis=0), means - means.mean(axis=0)
        lengths = np.sqrt(np.einsum("ij,ij->i", apart @ inverse, apart) * (query @ inverse @ query))
        assert found[place] == pytest.approx(apart @ inverse @ query / lengths, abs=1e-9), own


def test_lexical_scores_equal_a_lexicon_without_the_text_when_lengths_are_equal() -> None:
    texts = [["a b c", "a d e"], ["c f g", "h f i"], ["j k l", "j a m"]]
    terms = [[terms_of(term_frequencies(text)) for text in each] for each in texts]
    totals = [terms_of(represent(AXES[:1], each).terms) for each in texts]
    words = lexicon(totals)
    owners = np.repeat(np.arange(3), 2)
    found = lexical_scores(words, owners, totals, [each for both in terms for each in both])
    for row, own in enumerate(owners.tolist()):
        rest = [texts[own][1 - row % 2]]
        without = [terms_of(represent(AXES[:1], rest).terms) if t == own else totals[t] for t in range(3)]
        assert found[row] == pytest.approx(lexicon(without).scores(terms[own][row % 2]), abs=0.05)
        assert found[row, own] < words.scores(terms[own][row % 2])[own] - 0.3


def test_lexical_scores_are_those_of_the_lexicon_when_the_text_is_not_its_own_tasks() -> None:
    texts = [["a b a", "a c"], ["c d", "b d e"], ["e f"]]
    totals = [terms_of(represent(AXES[:1], each).terms) for each in texts]
    words = lexicon(totals)
    asked = [terms_of(term_frequencies("g h")), NO_TERMS, terms_of(term_frequencies("b c x"))]
    found = lexical_scores(words, np.array([0, 1, 2]), totals, asked)
    assert found[:2].tolist() == [[0.0] * 3] * 2
    assert found[2] == pytest.approx(words.scores(asked[2]), abs=1e-6)


def test_weights_are_of_the_least_loss_when_fitted() -> None:
    random = np.random.default_rng(0)
    own = random.integers(0, 6, 200)
    dense, lexical = random.normal(size=(2, 200, 6))
    dense[np.arange(200), own] += 1.0
    lexical[np.arange(200), own] -= 0.5
    weights, _ = fit_weights(dense, lexical, own)
    assert weights[0] > 0.5
    assert weights[1] == 0.0
    lexical[np.arange(200), own] += 1.5
    weights, _ = fit_weights(dense, lexical, own)
    best = log_loss(np.stack([dense, lexical]), own, weights)[0]
    for step in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        assert log_loss(np.stack([dense, lexical]), own, weights + step)[0] > best - 1e-4


def test_whitening_is_off_when_it_does_not_help_and_on_when_it_does() -> None:
    random = np.random.default_rng(1)

    def chosen(noise: np.ndarray) -> float:
        centers = random.normal(size=(12, 16))
        sets = [unit_rows(each + random.normal(size=(20, 16)) * noise) for each in centers]
        gathered = Memory().gather([TaskExamples(f"{n:02}", each) for n, each in enumerate(sets)])
        return fit_posterior(LeftOut(gathered), {}).chosen.constants["shrinkage"]

    assert chosen(np.ones(16)) == 1.0
    assert chosen(np.where(np.arange(16) < 3, 8.0, 0.3)) < 1.0


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_scatter_survives_packing_when_it_is_of_usual_size() -> None:
    sets = drawn()
    scatter = scatter_of(*moments(sets))
    assert scatter is not None
    assert np.trace(scatter) == pytest.approx(8)
    assert unpacked(packed(scatter)) == pytest.approx(scatter, abs=5e-3)
    assert scatter_of(*moments([np.ones((4, 3))])) is None
    assert middle(np.ones((2, 3))).tolist() == [0, 0, 0]


def test_profile_tells_tasks_apart_by_words_when_vectors_are_equal() -> None:
    texts = {"add": ["add one", "add two", "add three"], "name": ["name one", "name two", "name three"]}
    vectors = np.tile(AXES[:1], (3, 1))
    examples = [
        TaskExamples(
            name,
            vectors,
            [terms_of(term_frequencies(text)) for text in each],
            terms_of(represent(vectors, each).terms),
        )
        for name, each in texts.items()
    ]
    assert fit_profile(examples).figures["loo_top1"] == 1.0
    assert fit_profile(examples).constants["lexical_weight"] > 1.0
