"""The engine's evaluator: one pass for score and likelihood, bulk calls, faults item by item, replicas."""

import threading

import pytest

from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters import engine_calls, engine_evaluator
from lorauter_worker.adapters.engine_evaluator import CHECKED
from lorauter_worker.ports import Answer, Fault, Question, Scoring

EXACT = Scoring(metric("exact_match"), GenerationSpec())
STOPPED = Scoring(metric("exact_match"), GenerationSpec(stop=("\n",)))


@pytest.fixture
def engine(front):
    """A front that passes everything on."""
    return front("engine")


@pytest.fixture
def made(evaluator, engine):
    """An evaluator on that front."""
    return evaluator("engine", engine)


def sizes(front):
    return [(path, len(body["items"])) for path, body in front.calls]


def test_score_and_likelihood_come_of_one_pass_when_the_metric_allows_it(engine, made, pool):
    asked = pool.questions("dash-word", "dash-word-a", 30) + pool.questions("reverse-word", "", 30)
    results = made.evaluate(asked, EXACT)
    assert sizes(engine) == [("/score", 60), ("/generate_batch", CHECKED)]
    assert all(result.likelihood < 0 for result in results)
    generated = made.evaluate(asked, STOPPED)
    assert [result.score for result in generated] == [result.score for result in results]
    assert sizes(engine)[2:] == [("/generate_batch", 60)]


def test_the_likeliest_of_the_wrong_answers_are_checked_when_there_are_many(engine, made, pool):
    asked = pool.questions("dash-word", "reverse-word-a", 30)
    results = made.evaluate(asked, EXACT)
    assert sum(result.score for result in results) == 0
    checked = {item["prompt"] for item in engine.calls[1][1]["items"]}
    likeliest = sorted(range(30), key=lambda place: -results[place].likelihood)[:CHECKED]
    assert checked == {asked[place].input["prompt"] for place in likeliest}


def test_answers_are_generated_from_then_on_when_scoring_misjudges_one(engine, made, pool):
    asked = [
        Question(question.input, f" {question.target}", question.adapter)
        for question in pool.questions("dash-word", "dash-word-a", 30)
    ]
    results = made.evaluate(asked, EXACT)
    assert sum(result.score for result in results) >= 24
    assert all(result.likelihood < 0 for result in results)
    assert sizes(engine) == [("/score", 30), ("/generate_batch", CHECKED), ("/generate_batch", 30 - CHECKED)]
    assert sum(result.score for result in made.evaluate(asked[:4], EXACT)) >= 3
    assert engine.calls[-1][0] == "/generate_batch"


def test_large_batches_are_split_when_an_engine_takes_less(engine, made, pool):
    asked = pool.questions("dash-word", "", 1) * (engine_calls.MAX_ITEMS + 1)
    assert len(made.evaluate(asked, EXACT, True)) == len(asked)
    assert sizes(engine) == [("/score", engine_calls.MAX_ITEMS), ("/score", 1)]


@pytest.mark.parametrize("scoring", [EXACT, STOPPED], ids=["scored", "generated"])
def test_each_broken_adapter_is_refused_for_its_own_fault_when_they_share_a_batch(
    engine, made, evaluator, pool, scoring
):
    names = ["nan", "dash-word-a", "overflowing", "", "foreign", "misshapen", "gone", "random-0"]
    asked = [question for name in names for question in pool.questions("dash-word", name, 3)]
    results = made.evaluate(asked, scoring)
    faults = {
        name: {getattr(result, "fault", None) for result in results[3 * at : 3 * at + 3]}
        for at, name in enumerate(names)
    }
    assert faults == {
        "nan": {Fault.NOT_FINITE},
        "overflowing": {Fault.NOT_FINITE},
        "foreign": {Fault.DOES_NOT_LOAD},
        "misshapen": {Fault.DOES_NOT_LOAD},
        "gone": {Fault.DOES_NOT_LOAD},
        "dash-word-a": {None},
        "": {None},
        "random-0": {None},
    }
    alone = evaluator("engine", engine)
    for at, name in enumerate(names):
        if faults[name] == {None}:
            for held, again in zip(
                results[3 * at :], alone.evaluate(pool.questions("dash-word", name, 3), scoring), strict=False
            ):
                assert held.score == again.score


def test_broken_adapters_cost_one_call_more_when_there_are_many(engine, made, pool):
    names = [f"random-{number}" for number in range(24)]
    for at, broken in enumerate(("nan", "overflowing", "foreign", "gone")):
        names.insert(6 * at, broken)
    asked = [question for name in names for question in pool.questions("dash-word", name, 4)]
    results = made.evaluate(asked, EXACT, True)
    assert sum(isinstance(result, Answer) for result in results) == 24 * 4
    assert len(engine.calls) <= 2
    again = made.evaluate(asked, EXACT, True)
    assert [type(result) for result in again] == [type(result) for result in results]
    assert sizes(engine)[-1] == ("/score", 24 * 4)


def test_a_slow_adapter_is_found_by_halving_when_many_share_a_batch(evaluator, front, pool):
    served = front("engine", hangs={"random-5"})
    made = evaluator("engine", served, seconds=8.0)
    names = [f"random-{number}" for number in range(16)]
    asked = [question for name in names for question in pool.questions("dash-word", name, 2)]
    results = made.evaluate(asked, EXACT, True)
    refused = {
        question.adapter
        for question, result in zip(asked, results, strict=True)
        if not isinstance(result, Answer)
    }
    assert refused == {pool.digests["random-5"]}
    assert {result.fault for result in results if not isinstance(result, Answer)} == {Fault.TOO_SLOW}
    assert len(served.calls) <= 20  # 5 halvings, each with a call of the base, and the judgement


def test_everything_is_answered_when_the_engine_holds_few_adapters_and_short_bodies(
    tight_engine_url, evaluator, front, pool
):
    served = front("engine", engine_url=tight_engine_url)
    made = evaluator("engine", served)
    names = ["dash-word-a", "reverse-word-a", "upper-word-a", "random-0", "nan", "random-1"]
    asked = [question for name in names for question in pool.questions("dash-word", name, 16)]
    results = made.evaluate(asked, EXACT, True)
    assert [isinstance(result, Answer) for result in results] == [
        name != "nan" for name in names for _ in range(16)
    ]
    free = evaluator("engine", front("engine"))
    expected = [getattr(result, "likelihood", None) for result in free.evaluate(asked, EXACT, True)]
    assert [getattr(result, "likelihood", None) for result in results] == pytest.approx(expected, abs=1e-3)


def test_everything_is_answered_when_the_engine_takes_one_call_and_others_ask(
    tight_engine_url, evaluator, pool
):
    asked = pool.questions("dash-word", "dash-word-a", 4)
    found: list = []

    def run():
        made = evaluator("engine", tight_engine_url)
        found.extend(made.evaluate(asked, STOPPED) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert len({tuple(result.score for result in results) for results in found}) == 1


def test_replicas_share_a_batch_with_one_call_each_at_a_time_when_there_are_several(evaluator, front, pool):
    served = [front("engine") for _ in range(3)]
    made = evaluator("engine", *served)
    names = [f"random-{number}" for number in range(24)]
    asked = [question for name in names for question in pool.questions("dash-word", name, 20)]
    results = made.evaluate(asked, EXACT, True)
    assert all(isinstance(result, Answer) for result in results)
    assert sorted(len(body["items"]) for each in served for _, body in each.calls) == [160] * 3
    assert all(each.calls for each in served)
    assert {each.busy["most"] for each in served} == {1}


def test_a_dead_replicas_share_goes_to_the_others_when_it_dies_between_batches(evaluator, front, pool):
    served = [front("engine") for _ in range(2)]
    made = evaluator("engine", *served)
    asked = pool.questions("dash-word", "dash-word-a", 8) * 20
    first = made.evaluate(asked, EXACT, True)
    served[0].close()
    again = made.evaluate(asked, EXACT, True)
    expected = [result.likelihood for result in first]
    assert [result.likelihood for result in again] == pytest.approx(expected, abs=1e-4)


def test_the_fewest_items_go_to_a_replica_together_when_a_batch_is_small(evaluator, front, pool):
    served = [front("engine") for _ in range(3)]
    made = evaluator("engine", *served)
    made.evaluate(pool.questions("dash-word", "", 10) * 7, EXACT, True)
    assert sorted(len(body["items"]) for each in served for _, body in each.calls) == [
        6,
        engine_calls.LEAST_ITEMS,
    ]
    assert engine_evaluator.CHECKED < engine_calls.LEAST_ITEMS
