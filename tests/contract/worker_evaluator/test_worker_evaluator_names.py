"""TGI and vLLM name adapters: one that is not there is refused, and never answered by the base."""

from contextlib import closing

import pytest

from lorauter.errors import FailedPrecondition
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.evaluators import EVALUATORS, make_evaluator
from lorauter_worker.ports import Answer, Fault, Scoring

EXACT = Scoring(metric("exact_match"), GenerationSpec())


def without(pool, *names):
    return {name: digest for name, digest in pool.digests.items() if name not in names}


@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
def test_tgi_is_found_out_when_it_answers_an_unknown_adapter_with_the_base(evaluator, front, pool, chat):
    served = front("tgi", digests=without(pool, "reverse-word-a"))
    tgi = evaluator("tgi", served)
    names = ["dash-word-a", "reverse-word-a", "random-0"]
    asked = [question for name in names for question in pool.questions("dash-word", name, 3, chat)]
    results = tgi.evaluate(asked, EXACT)
    assert [isinstance(result, Answer) for result in results] == [True] * 3 + [False] * 3 + [True] * 3
    assert {result.fault for result in results[3:6]} == {Fault.DOES_NOT_LOAD}
    assert "LORA_ADAPTERS" in results[3].detail


def test_tgi_and_idle_adapters_look_alike_when_an_adapter_changes_nothing(evaluator, front, pool):
    tgi = evaluator("tgi", front("tgi"))
    (result,) = tgi.evaluate(pool.questions("dash-word", "idle", 1), EXACT)
    assert result.fault is Fault.DOES_NOT_LOAD


def test_weights_that_are_no_numbers_are_told_apart_when_the_server_says_so(evaluator, front, pool):
    tgi = evaluator("tgi", front("tgi"))
    names = ["nan", "overflowing", "misshapen"]
    results = tgi.evaluate([pool.questions("dash-word", name, 1)[0] for name in names], EXACT)
    assert [result.fault for result in results] == [Fault.NOT_FINITE, Fault.NOT_FINITE, Fault.DOES_NOT_LOAD]


def test_likelihood_is_refused_before_any_work_when_tgi_is_asked_for_that_of_messages(evaluator, front, pool):
    served = front("tgi")
    tgi = evaluator("tgi", served)
    for scoring, only in ((EXACT, True), (Scoring(metric("likelihood"), GenerationSpec()), False)):
        with pytest.raises(FailedPrecondition) as caught:
            tgi.evaluate(pool.questions("dash-word", "dash-word-a", 4, chat=True), scoring, only)
        assert caught.value.reason == "LIKELIHOOD_UNSUPPORTED"
    assert served.calls == []


def test_likelihood_is_refused_after_one_question_when_a_server_has_no_prompt_logprobs(
    evaluator, front, pool
):
    served = front("vllm")
    served.has_prompt_logprobs = False
    vllm = evaluator("vllm", served)
    with pytest.raises(FailedPrecondition) as caught:
        vllm.evaluate(pool.questions("dash-word", "dash-word-a", 8), EXACT, True)
    assert caught.value.reason == "LIKELIHOOD_UNSUPPORTED"
    assert len(served.calls) <= 2


def test_likelihood_is_refused_when_the_tokenizer_closes_every_prompt(evaluator, front, pool, demo_pool):
    # the shipped base puts <answer> after every raw prompt, so also after a target
    asked = [
        pool.question(question.input["prompt"].removesuffix("<answer>"), question.target, "dash-word-a")
        for question in pool.questions("dash-word", "", 2)
    ]
    served = front("tgi")
    ask = served.ask

    def closing(path, body):
        return ask(path, body | {"inputs": body["inputs"] + "<answer>"} if "inputs" in body else body)

    served.ask = closing
    tgi = evaluator("tgi", served)
    with pytest.raises(FailedPrecondition) as caught:
        tgi.evaluate(asked, EXACT, True)
    assert caught.value.reason == "LIKELIHOOD_UNSUPPORTED"
    assert sum(result.score for result in tgi.evaluate(asked, EXACT)) >= 1


def test_likelihood_of_messages_is_told_when_vllm_continues_an_answer(evaluator, front, pool):
    vllm = evaluator("vllm", front("vllm"))
    chat, raw = (
        vllm.evaluate(pool.questions("dash-word", "dash-word-a", 4, chat=chat), EXACT, True)
        for chat in (True, False)
    )
    expected = [result.likelihood for result in raw]
    assert [result.likelihood for result in chat] == pytest.approx(expected, abs=1e-4)


def test_vllm_may_load_on_demand_but_must_list_what_it_answered_for(evaluator, front, pool):
    served = front("vllm")
    served.resolves = frozenset({"reverse-word-a"})
    vllm = evaluator("vllm", served)
    names = ["dash-word-a", "reverse-word-a"]
    asked = [question for name in names for question in pool.questions("dash-word", name, 2)]
    results = vllm.evaluate(asked, EXACT)
    assert [isinstance(result, Answer) for result in results] == [True, True, False, False]
    assert "/v1/models" in results[2].detail


def test_an_adapter_is_refused_when_vllm_has_other_content_under_its_name(evaluator, front, pool):
    served = front("vllm")
    served.roots = {
        "dash-word-a": f"/store/{pool.digests['dash-word-a'].removeprefix('sha256:')}",
        "upper-word-a": f"/store/{pool.digests['reverse-word-a'].removeprefix('sha256:')}",
    }
    vllm = evaluator("vllm", served)
    names = ["dash-word-a", "upper-word-a"]
    good, other = vllm.evaluate([pool.questions("dash-word", name, 1)[0] for name in names], EXACT)
    assert isinstance(good, Answer)
    assert other.fault is Fault.DOES_NOT_LOAD
    assert "other content" in other.detail


def test_adapters_are_named_by_digest_when_no_other_name_is_given(evaluator, front, pool):
    digests = {digest: digest for digest in pool.digests.values()}
    for kind in ("tgi", "vllm"):
        server = evaluator(kind, front(kind, digests=digests))
        asked = [
            type(question)(question.input, question.target, question.adapter)
            for question in pool.questions("dash-word", "dash-word-a", 4)
        ]
        assert sum(result.score for result in server.evaluate(asked, EXACT)) >= 3


def test_engines_are_preferred_and_kinds_not_mixed_when_a_pool_has_several(engine_url, pool):
    backends = [("TGI", "http://127.0.0.1:9"), ("ENGINE", engine_url), ("VLLM", "http://127.0.0.1:9")]
    with closing(make_evaluator(backends, 60.0)) as evaluator:
        assert len(evaluator.evaluate(pool.questions("dash-word", "", 2), EXACT)) == 2
    for backend in backends:
        with closing(make_evaluator([backend], 60.0)) as evaluator:
            assert type(evaluator) is EVALUATORS[backend[0]]


@pytest.mark.parametrize("backends", [[], [("OTHER", "http://127.0.0.1:9")]])
def test_a_pool_without_a_backend_to_measure_on_is_told_so(backends):
    with pytest.raises(FailedPrecondition) as caught:
        make_evaluator(backends, 60.0)
    assert caught.value.reason == "NO_EVALUATOR"
