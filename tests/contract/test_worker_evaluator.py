"""The evaluator against an engine's protocol: batches, refusals, faults and deadlines."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.metrics import Metric, metric
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.engine_evaluator import CHECKED, MAX_ITEMS, EngineEvaluator
from lorauter_worker.ports import Question, Refused, Scoring

SCORED = Scoring(metric("exact_match"), GenerationSpec())
STOPPED = Scoring(metric("exact_match"), GenerationSpec(7, ("\n",)))


class Engine:
    """The engine's two batch routes: it answers each prompt with its last word, unless told otherwise.

    ``hides_answers``: its answers begin with a marker that decoding drops, so no target is ever exact.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.broken: set[str] = set()
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.too_long = "LONG"
        self.hides_answers = False
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer, headers = engine.answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                """Keeps the test's output quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str, body: dict) -> tuple[int, object, dict[str, str]]:
        self.calls.append((path, body))
        if self.faults:
            status, headers = self.faults.pop(0)
            return status, {"error": "a fault", "error_type": "overloaded"}, headers
        for item in body["items"]:
            if any(adapter["id"] in self.broken for adapter in item["adapters"]):
                return 422, {"error": "the adapter does not fit", "error_type": "validation"}, {}
            if self.too_long in item.get("prompt", ""):
                return 422, {"error": "the prompt is too long", "error_type": "validation"}, {}
        if path == "/score":
            return 200, {"items": [self.score(item) for item in body["items"]]}, {}
        most = body["parameters"]["max_new_tokens"]
        return 200, {"items": [{"generated_text": f"{self.word(i)[:most]} "} for i in body["items"]]}, {}

    def word(self, item: dict) -> str:
        prompt = item["prompt"] if "prompt" in item else item["messages"][-1]["content"]
        return prompt.split()[-1]

    def score(self, item: dict) -> dict:
        tokens = len(item["target"]) + 1  # every letter and the end
        exact = self.word(item) == item["target"] and not self.hides_answers
        return {"logprob": -1.0, "tokens": tokens, "exact": exact}


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()


@pytest.fixture
def evaluator(engine):
    evaluator = EngineEvaluator([engine.url + "/"], timeout_seconds=5)
    yield evaluator
    evaluator.close()


def ask(prompt: str, target: str, adapter: str = "") -> Question:
    return Question({"prompt": prompt}, target, adapter)


def test_answers_are_scored_in_one_call_when_adapters_are_mixed(engine, evaluator):
    chat = Question({"messages": [{"role": "user", "content": "say c"}]}, "c", "sha256:b")
    asked = [ask("say a", "a"), ask("say b", "x", "sha256:a"), chat]
    assert evaluator.evaluate(asked, SCORED) == [1.0, 0.0, 1.0]
    (path, body), (check, wrong) = engine.calls
    assert (path, check) == ("/score", "/generate_batch")
    assert [item["prompt"] for item in wrong["items"]] == ["say b"]
    assert body["items"] == [
        {"prompt": "say a", "adapters": [], "target": "a"},
        {"prompt": "say b", "adapters": [{"id": "sha256:a", "weight": 1.0}], "target": "x"},
        {
            "messages": [{"role": "user", "content": "say c"}],
            "adapters": [{"id": "sha256:b", "weight": 1.0}],
            "target": "c",
        },
    ]


@pytest.mark.parametrize(
    "scoring",
    [STOPPED, Scoring(Metric("near", 1, lambda p, t: 0.5 * (p.strip() == t)), GenerationSpec(7))],
)
def test_answers_are_generated_when_the_metric_or_a_stop_text_needs_it(engine, evaluator, scoring):
    scores = evaluator.evaluate([ask("say a", "a"), ask("say b", "x")], scoring)
    assert scores == [scoring.metric.score("a", "a"), 0.0]
    ((path, body),) = engine.calls
    assert path == "/generate_batch"
    assert body["parameters"] == {"max_new_tokens": 7, "stop": list(scoring.generation.stop)}
    assert "target" not in body["items"][0]


def test_answers_are_generated_from_then_on_when_scoring_misjudges_one(engine, evaluator):
    engine.hides_answers = True
    asked = [ask(f"say {number}", str(number) if number % 2 else "x") for number in range(100)]
    assert evaluator.evaluate(asked, SCORED) == [float(number % 2) for number in range(100)]
    assert [(path, len(body["items"])) for path, body in engine.calls] == [
        ("/score", 100),
        ("/generate_batch", CHECKED),
        ("/generate_batch", 100 - CHECKED),
    ]
    assert evaluator.evaluate([ask("say 1", "1")], SCORED) == [1.0]
    assert engine.calls[-1][0] == "/generate_batch"


def test_the_likeliest_of_the_wrong_answers_are_checked_when_there_are_many(engine, evaluator):
    asked = [ask(f"say {number}", "x" * (1 + number % 40)) for number in range(80)]
    assert sum(evaluator.evaluate(asked, SCORED)) == 0
    checked = {item["prompt"] for item in engine.calls[1][1]["items"]}
    assert len(checked) == CHECKED
    assert "say 39" in checked
    assert "say 0" not in checked


def test_a_target_scores_0_when_it_is_longer_than_what_is_generated(evaluator):
    short = Scoring(metric("exact_match"), GenerationSpec(max_new_tokens=3))
    assert evaluator.evaluate([ask("say abc", "abc"), ask("say abcd", "abcd")], short) == [1.0, 0.0]


def test_large_batches_are_split_when_an_engine_takes_less(engine, evaluator):
    asked = [ask(f"say {number}", str(number)) for number in range(MAX_ITEMS + 1)]
    assert evaluator.evaluate(asked, SCORED) == [1.0] * len(asked)
    assert [len(body["items"]) for _, body in engine.calls] == [MAX_ITEMS, 1]
    assert evaluator.evaluate([], SCORED) == []


def test_only_the_broken_adapter_is_refused_when_a_batch_is_not_taken(engine, evaluator):
    engine.broken = {"bad"}
    asked = [ask(f"say {n}", str(n), adapter) for n in range(4) for adapter in ("good", "bad", "")]
    results = evaluator.evaluate(asked, SCORED)
    assert results == [1.0, Refused("the adapter does not fit"), 1.0] * 4
    assert len(engine.calls) < 10


def test_a_question_scores_0_when_not_even_the_base_can_take_it(engine, evaluator):
    asked = [ask(p, p.split()[-1], adapter) for adapter in ("good", "") for p in ("say a", "LONG b", "say c")]
    assert evaluator.evaluate(asked, SCORED) == [1.0, 0.0, 1.0] * 2


def test_a_broken_adapter_is_found_when_some_questions_are_too_long_as_well(engine, evaluator):
    engine.broken = {"bad"}
    asked = [ask(p, p.split()[-1], adapter) for adapter in ("bad", "good") for p in ("LONG b", "say a")]
    results = evaluator.evaluate(asked, SCORED)
    assert [isinstance(result, Refused) for result in results] == [True, True, False, False]
    assert results[2:] == [0.0, 1.0]


def test_faults_are_retried_when_they_pass(engine, evaluator):
    engine.faults = [(503, {}), (429, {"retry-after": "0"}), (500, {})]
    assert evaluator.evaluate([ask("say a", "a")], SCORED) == [1.0]
    assert len(engine.calls) == 4


def test_another_engine_is_asked_when_one_is_away(engine):
    evaluator = EngineEvaluator(["http://127.0.0.1:9", engine.url], timeout_seconds=5)
    assert evaluator.evaluate([ask("say a", "a")], SCORED) == [1.0]
    assert evaluator.evaluate([ask("say a", "a")], SCORED) == [1.0]


def test_unavailable_is_raised_in_time_when_nobody_answers():
    evaluator = EngineEvaluator(["http://127.0.0.1:9"], timeout_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        evaluator.evaluate([ask("say a", "a")], SCORED)
    assert caught.value.reason == "BACKEND_UNAVAILABLE"
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("status", [400, 404, 413])
def test_the_backend_is_blamed_when_it_answers_what_no_engine_does(engine, evaluator, status):
    engine.faults = [(status, {})]
    with pytest.raises(FailedPrecondition) as caught:
        evaluator.evaluate([ask("say a", "a")], SCORED)
    assert caught.value.reason == "BACKEND_REFUSED"
    assert str(status) in caught.value.message


def test_the_backend_is_blamed_when_items_are_missing(engine, evaluator):
    engine.answer = lambda path, body: (200, {"items": []}, {})
    with pytest.raises(FailedPrecondition, match="number of items"):
        evaluator.evaluate([ask("say a", "a")], SCORED)
    engine.answer = lambda path, body: (200, ["no"], {})
    with pytest.raises(FailedPrecondition, match="without items"):
        evaluator.evaluate([ask("say a", "a")], SCORED)
