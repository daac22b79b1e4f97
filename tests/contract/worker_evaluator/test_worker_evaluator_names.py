"""TGI and vLLM name adapters: one that is not there is refused, and never answered by the base."""

from contextlib import closing

import pytest

from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.identifiers import backend_name
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.addresses import replica_urls
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


def test_vllm_must_list_what_it_answers_for(evaluator, front, pool):
    served = front("vllm")
    served.hides = frozenset({"reverse-word-a"})
    vllm = evaluator("vllm", served)
    names = ["dash-word-a", "reverse-word-a"]
    asked = [question for name in names for question in pool.questions("dash-word", name, 2)]
    results = vllm.evaluate(asked, EXACT)
    assert [isinstance(result, Answer) for result in results] == [True, True, False, False]
    assert "/v1/models" in results[2].detail
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" in results[2].detail


def test_every_replica_is_asked_for_what_a_resolver_is_to_load(evaluator, front, pool):
    servers = [front("vllm"), front("vllm")]
    for each in servers:
        each.resolves = frozenset({"dash-word-a"})
    vllm = evaluator("vllm", *servers)
    results = vllm.evaluate(pool.questions("dash-word", "dash-word-a", 4), EXACT)
    assert sum(result.score for result in results) >= 3
    folder = backend_name(pool.digests["dash-word-a"])
    for each in servers:
        assert [body["model"] for _, body in each.calls if body.get("max_tokens") == 1] == [folder]
    assert not {path for each in servers for path, _ in each.calls} & {
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }


def test_what_vllm_says_of_an_adapter_that_it_cannot_load_is_passed_on(evaluator, front, pool):
    served = front("vllm", digests=without(pool, "reverse-word-a"))
    vllm = evaluator("vllm", served)
    names = ["dash-word-a", "reverse-word-a"]
    good, gone = vllm.evaluate([pool.questions("dash-word", name, 1)[0] for name in names], EXACT)
    assert isinstance(good, Answer)
    assert gone.fault is Fault.DOES_NOT_LOAD
    assert "does not exist" in gone.detail


def test_an_adapter_is_refused_when_vllm_has_other_content_under_its_name(evaluator, front, pool):
    served = front("vllm")
    served.roots = {
        "dash-word-a": f"/store/{backend_name(pool.digests['dash-word-a'])}",
        "upper-word-a": f"/store/{backend_name(pool.digests['reverse-word-a'])}",
    }
    vllm = evaluator("vllm", served)
    names = ["dash-word-a", "upper-word-a"]
    good, other = vllm.evaluate([pool.questions("dash-word", name, 1)[0] for name in names], EXACT)
    assert isinstance(good, Answer)
    assert other.fault is Fault.DOES_NOT_LOAD
    assert "other content" in other.detail


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_nobody_is_refused_when_replicas_differ(evaluator, front, pool, kind):
    made = evaluator(kind, front(kind), front(kind, digests=without(pool, "reverse-word-a")))
    assert len(made.evaluate(pool.questions("dash-word", "dash-word-a", 4), EXACT)) == 4
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            made.evaluate(pool.questions("dash-word", "reverse-word-a", 4), EXACT)
        assert caught.value.reason == "REPLICAS_DIFFER"
    results = made.evaluate(pool.questions("dash-word", "dash-word-a", 4), EXACT)
    assert all(isinstance(result, Answer) for result in results)


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_what_no_replica_has_is_refused(evaluator, front, pool, kind):
    made = evaluator(kind, *(front(kind, digests=without(pool, "reverse-word-a")) for _ in range(2)))
    results = made.evaluate(pool.questions("dash-word", "reverse-word-a", 4), EXACT)
    assert {result.fault for result in results} == {Fault.DOES_NOT_LOAD}


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_adapters_are_asked_for_under_their_folders_names(evaluator, front, pool, kind):
    served = front(kind)
    server = evaluator(kind, served)
    for chat in (False, True):
        asked = pool.questions("dash-word", "dash-word-a", 4, chat)
        assert sum(result.score for result in server.evaluate(asked, EXACT)) >= 3
    folder = backend_name(pool.digests["dash-word-a"])
    assert folder in {body.get("model") for _, body in served.calls}
    names = {body["parameters"].get("adapter_id") for _, body in served.calls if "parameters" in body}
    assert folder in names or kind == "vllm"
    assert pool.store.path(pool.digests["dash-word-a"]).name == folder


def test_every_address_of_a_name_is_a_replica():
    hosts = {"pods.example": ["10.0.0.1", "10.0.0.2", "fd00::1"]}

    def resolve(name, port):
        assert port == 8000
        if name not in hosts:
            raise OSError("no such name")
        return hosts[name]

    urls = [
        "http://one:80",
        "dns+http://pods.example:8000/v",
        "dns+http://gone.example:8000",
        "http://one:80",
    ]
    assert replica_urls(urls, resolve) == [
        "http://one:80",
        "http://10.0.0.1:8000/v",
        "http://10.0.0.2:8000/v",
        "http://[fd00::1]:8000/v",
    ]
    with pytest.raises(Unavailable) as caught:
        replica_urls(["dns+http://gone.example:8000"], resolve)
    assert caught.value.reason == "BACKEND_UNAVAILABLE"
    assert "gone.example" in caught.value.message


def test_a_backend_behind_a_name_is_measured_on(engine_url, pool):
    url = engine_url.replace("http://127.0.0.1", "dns+http://localhost")
    with closing(make_evaluator([("ENGINE", url)], 60.0)) as evaluator:
        assert len(evaluator.evaluate(pool.questions("dash-word", "", 2), EXACT)) == 2
    unknown = [("ENGINE", "dns+http://no-such-name.invalid:80")]
    with pytest.raises(Unavailable) as caught:
        make_evaluator(unknown, 60.0)
    assert caught.value.reason == "BACKEND_UNAVAILABLE"


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
