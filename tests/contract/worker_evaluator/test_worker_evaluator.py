"""What every evaluator keeps: an engine by its own protocol, and by those of TGI and vLLM."""

import math
import socket
import threading
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.metrics import Metric, metric
from lorauter.prompts import GenerationSpec
from lorauter_worker.ports import UNLIKELY, Answer, Fault, Refused, Scoring

EXACT = Scoring(metric("exact_match"), GenerationSpec())
READ = Scoring(Metric("ends_right", 1, of_text=lambda p, t: float(p[-1:] == t[-1:])), GenerationSpec())


@pytest.fixture
def evaluate(kind, evaluator, front):
    """Evaluates on a new front; returns it and the results."""

    def run(questions, scoring, *given, seconds=60.0, **settings):
        served = front(kind.name, **settings)
        made = evaluator(kind.name, served.url + "/", seconds=seconds)
        return served, made.evaluate(questions, scoring, *given)

    return run


def scores(results):
    return [result.score for result in results]


@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
def test_adapters_answer_each_with_its_own_weights_when_a_batch_mixes_them(evaluate, pool, chat):
    names = ["dash-word-a", "", "reverse-word-a"]
    asked = [question for name in names for question in pool.questions("dash-word", name, chat=chat)]
    _, results = evaluate(asked[::-1], EXACT)
    own, base, other = (scores(results[::-1])[start : start + 8] for start in (0, 8, 16))
    assert sum(own) >= 7
    assert sum(other) == 0
    assert 0 < sum(base) < sum(own)
    assert set(own + base + other) == {0.0, 1.0}


def test_an_answer_ends_at_the_stop_text_or_the_most_tokens_when_the_task_says_so(evaluate, pool):
    asked = [
        pool.question(row.input["prompt"].removesuffix("<answer>"), row.target[:3], "dash-word-a")
        for row in pool.questions("dash-word", "dash-word-a", 4)
    ]
    assert all(question.target[1] == "-" for question in asked)
    short = Scoring(metric("exact_match"), GenerationSpec(max_new_tokens=3))
    assert scores(evaluate(asked, short)[1]) == [1.0] * 4
    assert scores(evaluate(asked, EXACT)[1]) == [0.0] * 4
    firsts = [
        pool.question(q.input["prompt"].removesuffix("<answer>"), q.target[0], "dash-word-a") for q in asked
    ]
    stopped = Scoring(metric("exact_match"), GenerationSpec(stop=("-",)))
    assert scores(evaluate(firsts, stopped)[1]) == [1.0] * 4


def test_text_is_scored_by_the_metric_when_it_must_be_generated(evaluate, pool):
    asked = pool.questions("dash-word", "dash-word-a", 4)
    _, results = evaluate(asked, READ)
    assert sum(scores(results)) >= 3


def test_only_the_adapters_that_are_not_there_are_refused_when_others_are(evaluate, pool):
    asked = [
        question
        for name in ("dash-word-a", "gone", "", "also-gone")
        for question in pool.questions("dash-word", name, 4)
    ]
    _, results = evaluate(asked, EXACT)
    assert {result.fault for result in results[4:8] + results[12:]} == {Fault.DOES_NOT_LOAD}
    assert all(result.detail for result in results[4:8])
    assert sum(scores(results[:4])) >= 3
    assert all(isinstance(result, Answer) for result in results[8:12])


def test_a_refused_adapter_is_not_asked_again_when_more_batches_follow(kind, evaluator, front, pool):
    served = front(kind.name)
    made = evaluator(kind.name, served, seconds=60.0)
    first = made.evaluate(pool.questions("dash-word", "gone"), EXACT)
    calls = len(served.calls)
    assert made.evaluate(pool.questions("reverse-word", "gone"), EXACT) == first
    assert len(served.calls) == calls


def test_a_question_scores_0_and_nobody_is_refused_when_not_even_the_base_can_take_it(evaluate, pool):
    asked = []
    for name in ("dash-word-a", "", "reverse-word-a"):
        asked += [pool.question("a " * 600, "a", name), *pool.questions("dash-word", name, 2)]
    _, results = evaluate(asked, EXACT)
    assert scores(results)[::3] == [0.0] * 3
    assert all(isinstance(result, Answer) for result in results)
    assert results[1].score == 1.0


def test_only_the_slow_adapter_is_refused_when_the_base_answers_in_time(evaluate, pool):
    names = ["dash-word-a", "reverse-word-a", "upper-word-a", "", *(f"random-{n}" for n in range(4))]
    asked = [question for name in names for question in pool.questions("dash-word", name, 4)]
    served, results = evaluate(asked, READ, seconds=8.0, hangs={"reverse-word-a"})
    assert {result.fault for result in results[4:8]} == {Fault.TOO_SLOW}
    assert all(isinstance(result, Answer) for result in results[:4] + results[8:])
    assert sum(scores(results[:4])) >= 3
    late = [body for _, body in served.calls if "reverse-word-a" in served.named(body)]
    assert len(late) <= 5


def test_likelihood_is_the_mean_of_the_targets_tokens_when_only_it_is_asked_for(evaluate, pool):
    asked = [question for name in ("dash-word-a", "") for question in pool.questions("dash-word", name, 4)]
    _, results = evaluate(asked, EXACT, True)
    assert all(math.isnan(result.score) for result in results)
    own, base = ([result.likelihood for result in part] for part in (results[:4], results[4:]))
    assert max(own + base) < 0
    assert sum(own) > sum(base) + 0.1


def test_likelihood_is_the_same_when_tgi_and_vllm_read_the_target(evaluator, front, pool):
    asked = pool.questions("upper-word", "dash-word-a", 4) + pool.questions("upper-word", "", 4)
    tgi = evaluator("tgi", front("tgi")).evaluate(asked, EXACT, True)
    vllm = evaluator("vllm", front("vllm")).evaluate(asked, EXACT, True)
    expected = [result.likelihood for result in tgi]
    assert [result.likelihood for result in vllm] == pytest.approx(expected, abs=1e-4)


def test_the_metric_likelihood_is_scored_when_the_backend_tells_it(evaluate, pool):
    asked = pool.questions("dash-word", "dash-word-a", 4)
    asked.append(pool.question("a " * 600, "a", "dash-word-a"))
    _, results = evaluate(asked, Scoring(metric("likelihood"), GenerationSpec()))
    assert all(0.5 < score < 1 for score in scores(results)[:4])
    assert scores(results)[0] == pytest.approx(math.exp(results[0].likelihood))
    assert results[4] == Answer(0.0, UNLIKELY)


def test_nothing_is_asked_when_there_are_no_questions(evaluate):
    for only in (False, True):
        served, results = evaluate([], EXACT, only)
        assert (served.calls, results) == ([], [])


def test_unavailable_is_raised_when_nobody_listens(kind, evaluator, pool):
    made = evaluator(kind.name, "http://127.0.0.1:9", seconds=0.5)
    with pytest.raises(Unavailable) as caught:
        made.evaluate(pool.questions("dash-word"), EXACT)
    assert caught.value.reason == "BACKEND_UNAVAILABLE"


@contextmanager
def silent():
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_unavailable_is_raised_and_nobody_refused_when_the_server_hangs(kind, evaluator, pool):
    with silent() as url:
        made = evaluator(kind.name, url, seconds=1.0)
        with pytest.raises(Unavailable) as caught:
            made.evaluate(pool.questions("dash-word", "dash-word-a"), EXACT)
        assert caught.value.reason == "BACKEND_UNAVAILABLE"


def test_another_replica_answers_when_one_is_away_or_hangs(kind, evaluator, front, pool):
    with silent() as url:
        made = evaluator(kind.name, url, "http://127.0.0.1:9", front(kind.name), seconds=6.0)
        asked = pool.questions("dash-word", "dash-word-a", 4)
        for _ in range(2):
            assert sum(scores(made.evaluate(asked, EXACT))) >= 3


def test_the_backend_is_blamed_when_it_is_no_server_of_its_kind(kind, evaluator, pool):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Keeps the test's output quiet."""

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        made = evaluator(kind.name, f"http://127.0.0.1:{server.server_port}", seconds=5.0)
        with pytest.raises((FailedPrecondition, Unavailable)) as caught:
            made.evaluate(pool.questions("dash-word"), EXACT)
        assert caught.value.reason in ("BACKEND_REFUSED", "BACKEND_UNAVAILABLE")
        server.shutdown()


@pytest.mark.parametrize("answer", [{}, {"items": []}, {"choices": [{}]}, {"details": {"tokens": 1}}])
def test_the_backend_is_blamed_when_its_answer_is_not_of_its_protocol(
    evaluate, pool, monkeypatch, kind, answer
):
    monkeypatch.setattr(kind.front, "answer", lambda self, path, body: (200, answer))
    with pytest.raises(FailedPrecondition) as caught:
        evaluate(pool.questions("dash-word"), EXACT)
    assert caught.value.reason == "BACKEND_REFUSED"


def test_faults_are_told_in_words_when_an_adapter_is_refused(evaluate, pool):
    _, (result,) = evaluate(pool.questions("dash-word", "gone", 1), EXACT)
    assert isinstance(result, Refused)
    assert len(result.detail) > 20
