"""What is kept of a query decides as the query did, and a pool decides under other constants."""

from __future__ import annotations

import numpy as np
import pytest

from lorauter.errors import InvalidArgument
from lorauter.routing import RouteOptions, TaskExamples, compile_pool, decide, fit_profile, represent
from lorauter.routing.bm25 import Terms, lexicon, terms_of
from lorauter.routing.lexical import term_frequencies
from lorauter.routing.model import Adapter, Affinity, Pool, Task
from lorauter.routing.replaying import pack_terms, pack_vector, under, unpack_terms, unpack_vector
from lorauter.routing.strategies.strategy import Query

TEXTS = {
    "add": ["add one to two", "add three to four", "add five to six"],
    "name": ["name the capital of Peru", "name the capital of Chile", "name the capital of Mali"],
    "spell": ["spell the word tree", "spell the word house", "spell the word river"],
}


def pool() -> Pool:
    draw = np.random.default_rng(3)
    vectors = {name: draw.normal(size=(3, 16)).astype(np.float32) for name in TEXTS}
    made = {name: represent(rows, TEXTS[name]) for name, rows in vectors.items()}
    examples = [
        TaskExamples(
            name,
            rows,
            [terms_of(term_frequencies(text)) for text in TEXTS[name]],
            terms_of(made[name].terms),
        )
        for name, rows in vectors.items()
    ]
    tasks = tuple(
        Task(
            name, 1, "exact_match", frozenset(), 3, made[name].centroid, made[name].terms,
            (Affinity(name, 1, 0.9, 20, 0.1), Affinity("base", 0, 0.1, 20, 0.1)),
        )
        for name in TEXTS
    )  # fmt: skip
    adapters = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in TEXTS)
    return Pool("p", "m", (), "ROUTE", fit_profile(examples), tasks, adapters, ())


def test_kept_query_decides_as_the_query_did() -> None:
    compiled = compile_pool(pool())
    draw = np.random.default_rng(5)
    for text in ("please add seven to nine", "name a thing", "spell zyx", "unheard of", ""):
        drawn = draw.normal(size=16)
        vector = (drawn / np.linalg.norm(drawn)).astype(np.float32)
        terms = terms_of(term_frequencies(text))
        kept = Query(
            unpack_vector(pack_vector(vector)),
            terms=unpack_terms(pack_terms(terms, compiled.lexicon)),
        )
        for strategy in ("default", "paper"):
            options = RouteOptions(strategy=strategy)
            before, after = decide(compiled, Query(vector, text), options), decide(compiled, kept, options)
            assert after.best_single == before.best_single
            assert after.expected_utility == pytest.approx(before.expected_utility, abs=0.01)
            assert after.typicality == pytest.approx(before.typicality, abs=0.05)


def test_terms_that_no_validation_set_has_are_not_kept() -> None:
    compiled = compile_pool(pool())
    secret = terms_of(term_frequencies("add hunter2 to my password"))
    kept = unpack_terms(pack_terms(secret, compiled.lexicon))
    assert 0 < len(kept.ids) < len(secret.ids)
    assert set(kept.ids) <= set(compiled.lexicon.ids)
    assert kept.counts.tolist() == [1.0] * len(kept.ids)
    nothing = pack_terms(secret, lexicon([]))
    assert nothing == b""
    assert len(unpack_terms(nothing).ids) == 0


@pytest.mark.parametrize("vector", [b"", b"abc", np.array([np.nan], "<f2").tobytes(), b"\x00\x7c"])
def test_vector_is_refused_when_it_is_none(vector: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_vector(vector)
    assert (refused.value.reason, refused.value.metadata["field"]) == ("INVALID_FEATURES", "vector")


def packed(ids: list[int], counts: list[float]) -> bytes:
    return np.array(ids, "<u4").tobytes() + np.array(counts, "<f4").tobytes()


@pytest.mark.parametrize(
    "terms",
    [b"1234567", packed([2, 1], [1, 1]), packed([1, 1], [1, 1]), packed([1], [0]), packed([1], [np.nan])],
    ids=["length", "order", "twice", "zero", "nan"],
)
def test_terms_are_refused_when_they_are_none(terms: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_terms(terms)
    assert (refused.value.reason, refused.value.metadata["field"]) == ("INVALID_FEATURES", "terms")


def test_pool_decides_under_other_constants_with_todays_scatter() -> None:
    today = pool()
    other = under(today, {**today.profile.constants, "dense_weight": 0.0, "lexical_weight": 50.0})
    assert other.profile.digest != today.profile.digest
    assert other.profile.scatter is today.profile.scatter
    vector = np.eye(16, dtype=np.float32)[0]
    decision = decide(other, Query(vector, "name the capital of Mali"))
    assert decision.tasks[0].task_id == "name"
    assert decision.tasks[0].probability > 0.99
    assert under(today, today.profile.constants).profile.digest == today.profile.digest


@pytest.mark.parametrize(
    "constants",
    [
        {"temperature": 0.0},
        {"shrinkage": 0.0},
        {"shrinkage": 1.5},
        {"tasks": 0.0},
        {"dense_weight": float("nan")},
        {"anything": float("inf")},
        {f"c{number}": 1.0 for number in range(257)},
    ],
)
def test_constants_are_refused_when_nothing_can_be_decided_by_them(constants: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        under(pool(), constants)
    assert refused.value.reason == "INVALID_CONSTANTS"


def test_empty_terms_count_as_no_words() -> None:
    compiled = compile_pool(pool())
    vector = np.eye(16, dtype=np.float32)[1]
    none = Terms(np.zeros(0, np.uint32), np.zeros(0))
    assert decide(compiled, Query(vector, terms=none)) == decide(compiled, Query(vector))
