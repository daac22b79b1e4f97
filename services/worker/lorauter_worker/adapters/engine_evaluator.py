"""Evaluates over HTTP on a pool's engine backends, in large batches that mix adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.backends import PLAIN, BackendAccess
from lorauter.telemetry import get_logger
from lorauter_worker.adapters.engine_calls import MAX_ITEMS, EngineCalls
from lorauter_worker.adapters.replicas import Replicas, protocol_error
from lorauter_worker.ports import UNLIKELY, Answer, Question, Refused, Scoring

_log = get_logger(__name__)

CHECKED = 16
"""Wrong answers of 1,024 scored ones that are generated as well, to see whether scoring tells the truth."""

Result = Answer | Refused


class EngineEvaluator:
    """An Evaluator on one or more engines of the same pool, which share every batch.

    Metrics that allow it are scored in one forward pass a question, which tells the likelihood too: the
    mean over the target's tokens and the end. Where a text may be right in other tokens, the likeliest of
    the wrong answers are generated as well; once one proves right, this evaluator generates all answers.
    """

    takes_sets = True

    def __init__(self, urls: Sequence[str], timeout_seconds: float, access: BackendAccess = PLAIN) -> None:
        """``timeout_seconds`` bounds how long a batch may go without an answer from any engine."""
        self._replicas = Replicas(urls, timeout_seconds, access)
        self._calls = EngineCalls(self._replicas)
        self._must_generate = False

    def evaluate(
        self, questions: Sequence[Question], scoring: Scoring, likelihood_only: bool = False
    ) -> list[Answer | Refused]:
        """See Evaluator."""
        metric = scoring.metric
        if likelihood_only or not metric.reads_text:
            return self._passed(questions, scoring, likelihood_only)
        if metric.needs_generation or scoring.generation.stop or self._must_generate:
            return self._generated(questions, scoring)
        results = self._passed(questions, scoring, likelihood_only)
        checks = CHECKED * math.ceil(len(questions) / MAX_ITEMS)
        doubtful = _doubtful(results)
        if self._correct(results, doubtful[:checks], questions, scoring):
            _log.info("worker.evaluator.generates", urls=self._replicas.urls)
            self._must_generate = True
            self._correct(results, doubtful[checks:], questions, scoring)
        return results

    def close(self) -> None:
        """See Evaluator."""
        self._replicas.close()

    def _passed(self, questions: Sequence[Question], scoring: Scoring, likelihood_only: bool) -> list[Result]:
        items = [{**_item(question), "target": question.target} for question in questions]
        outcomes = self._calls.ask("/score", [question.adapter for question in questions], items)
        results: list[Result] = []
        for outcome in outcomes:
            if isinstance(outcome, Refused):
                results.append(outcome)
            elif outcome is None:
                results.append(Answer(math.nan if likelihood_only else 0.0, UNLIKELY))
            else:
                exact, likelihood = self._read(outcome, scoring)
                score = math.nan if likelihood_only else scoring.metric.from_pass(exact, likelihood)
                results.append(Answer(score, likelihood))
        return results

    def _read(self, answer: Mapping[str, Any], scoring: Scoring) -> tuple[bool, float]:
        try:
            exact, tokens = bool(answer["exact"]), int(answer["tokens"])
            likelihood = float(answer["logprob"]) / max(1, tokens)
        except (KeyError, TypeError, ValueError):
            raise protocol_error(", ".join(self._replicas.urls), "answered no scores") from None
        # greedy decoding would stop before the end of a longer target; its end token is not an answer's
        return exact and tokens - 1 <= scoring.generation.max_new_tokens, likelihood

    def _generated(self, questions: Sequence[Question], scoring: Scoring) -> list[Result]:
        generation = scoring.generation
        parameters = {"max_new_tokens": generation.max_new_tokens, "stop": list(generation.stop)}
        adapters = [question.adapter for question in questions]
        items = [_item(question) for question in questions]
        outcomes = self._calls.ask("/generate_batch", adapters, items, parameters=parameters)
        results: list[Result] = []
        for question, outcome in zip(questions, outcomes, strict=True):
            if isinstance(outcome, Refused):
                results.append(outcome)
            elif outcome is None:
                results.append(Answer(0.0, math.nan))
            elif isinstance(text := outcome.get("generated_text"), str):
                results.append(Answer(scoring.metric.score(text, question.target), math.nan))
            else:
                raise protocol_error(", ".join(self._replicas.urls), "answered no text")
        return results

    def _correct(
        self, results: list[Result], places: Sequence[int], questions: Sequence[Question], scoring: Scoring
    ) -> bool:
        """Generates the answers at some places and corrects their scores; returns whether any was better."""
        generated = self._generated([questions[place] for place in places], scoring) if places else []
        is_better = False
        for place, result in zip(places, generated, strict=True):
            held = results[place]
            if isinstance(result, Refused) or isinstance(held, Refused):
                results[place] = result
                continue
            is_better |= result.score > held.score
            results[place] = Answer(result.score, held.likelihood)
        return is_better


def _item(question: Question) -> dict[str, Any]:
    if not question.members:
        return dict(question.input)
    adapters = [{"id": digest, "weight": weight} for digest, weight in question.members]
    return {**question.input, "adapters": adapters}


def _doubtful(results: Sequence[Result]) -> list[int]:
    """Returns the places of answers that are not right, likeliest target first.

    A right answer is proven so by a forward pass. A wrong one is not: the model may say the same text in
    other tokens, such as a leading space or a marker that decoding drops.
    """
    likelihoods = {
        place: result.likelihood
        for place, result in enumerate(results)
        if isinstance(result, Answer) and result.score < 1.0
    }
    return sorted(likelihoods, key=lambda place: -likelihoods[place])
