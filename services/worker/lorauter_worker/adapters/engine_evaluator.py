"""Evaluates over HTTP on a pool's engine backends, in large batches that mix adapters."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import httpx

from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.telemetry import get_logger
from lorauter_worker.ports import Question, Refused, Scoring

_log = get_logger(__name__)

MAX_ITEMS = 1024
"""Most items that an engine takes in one call."""

CHECKED = 16
"""Wrong answers of a scored batch that are generated as well, to see whether scoring tells the truth."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

_RETRIED = frozenset({408, 424, 425, 429, 500, 502, 503, 504})


class _NotTaken(Exception):
    """The engine answered 422: something in the batch is wrong."""


class EngineEvaluator:
    """An Evaluator on one or more engines of the same pool; tries the next when one does not answer.

    Metrics that allow it are scored in one forward pass a question. The likeliest of the wrong answers
    are then generated too; once one of them proves right, this evaluator generates all answers.
    """

    def __init__(self, urls: Sequence[str], timeout_seconds: float) -> None:
        """``timeout_seconds`` bounds one batch with its retries."""
        self._urls = [url.rstrip("/") for url in urls]
        self._timeout_seconds = timeout_seconds
        self._client = httpx.Client(timeout=timeout_seconds, trust_env=False)
        self._turn = 0
        self._must_generate = False

    def evaluate(self, questions: Sequence[Question], scoring: Scoring) -> list[float | Refused]:
        """See Evaluator."""
        results: list[float | Refused] = []
        for start in range(0, len(questions), MAX_ITEMS):
            results.extend(self._batch(list(questions[start : start + MAX_ITEMS]), scoring))
        return results

    def close(self) -> None:
        """See Evaluator."""
        self._client.close()

    def _batch(self, questions: list[Question], scoring: Scoring) -> list[float | Refused]:
        """Scores a batch; where it is not taken, adapter by adapter."""
        try:
            return list(self._scores(questions, scoring))
        except _NotTaken as error:
            reason = str(error)
        places: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(questions):
            places[question.adapter].append(place)
        results: list[float | Refused] = [0.0] * len(questions)
        for group in places.values():
            scores = self._one_adapter([questions[place] for place in group], scoring, reason)
            for place, score in zip(group, scores, strict=True):
                results[place] = score
        return results

    def _one_adapter(
        self, questions: list[Question], scoring: Scoring, reason: str
    ) -> Sequence[float | Refused]:
        """Scores one adapter's questions; if they are not taken, the base tells what is at fault."""
        try:
            return self._scores(questions, scoring)
        except _NotTaken as error:
            reason = str(error)
        adapter = questions[0].adapter
        bare = [Question(question.input, question.target, "") for question in questions]
        taken = self._taken(bare, scoring)
        if adapter and any(taken):
            some = next(place for place, is_taken in enumerate(taken) if is_taken)
            if not self._taken([questions[some]], scoring)[0]:
                return [Refused(reason)] * len(questions)
        usable = [question for question, is_taken in zip(questions, taken, strict=True) if is_taken]
        try:
            scores = iter(self._scores(usable, scoring) if usable else [])
        except _NotTaken as error:
            return [Refused(str(error))] * len(questions)
        return [next(scores) if is_taken else 0.0 for is_taken in taken]

    def _taken(self, questions: list[Question], scoring: Scoring) -> list[bool]:
        """Returns which questions are taken, by halving what is not."""
        try:
            self._scores(questions, scoring)
        except _NotTaken:
            if len(questions) == 1:
                return [False]
            half = len(questions) // 2
            return self._taken(questions[:half], scoring) + self._taken(questions[half:], scoring)
        return [True] * len(questions)

    def _scores(self, questions: list[Question], scoring: Scoring) -> list[float]:
        if scoring.metric.needs_generation or scoring.generation.stop or self._must_generate:
            return self._generated(questions, scoring)
        scores, doubtful = self._teacher_forced(questions, scoring)
        checked, rest = doubtful[:CHECKED], doubtful[CHECKED:]
        if not self._correct(scores, checked, questions, scoring):
            return scores
        _log.info("worker.evaluator.generates", url=self._urls[self._turn % len(self._urls)])
        self._must_generate = True
        self._correct(scores, rest, questions, scoring)
        return scores

    def _teacher_forced(self, questions: list[Question], scoring: Scoring) -> tuple[list[float], list[int]]:
        """Returns scores from one forward pass, and the places of wrong answers, likeliest target first.

        A right answer is proven so. A wrong one is not: the model may say the same text in other tokens,
        such as a leading space or a marker that decoding drops.
        """
        items = [{**_item(question), "target": question.target} for question in questions]
        answers = self._call("/score", {"items": items})
        scores = [
            # greedy decoding would stop before the end of a longer target; its end token is not an answer's
            float(bool(answer["exact"]) and int(answer["tokens"]) - 1 <= scoring.generation.max_new_tokens)
            for answer in answers
        ]
        likelihood = [float(answer["logprob"]) / max(1, int(answer["tokens"])) for answer in answers]
        wrong = [place for place, score in enumerate(scores) if not score]
        return scores, sorted(wrong, key=lambda place: -likelihood[place])

    def _correct(
        self, scores: list[float], places: list[int], questions: list[Question], scoring: Scoring
    ) -> bool:
        """Generates the answers at some places and corrects their scores; returns whether any was right."""
        if not places:
            return False
        generated = self._generated([questions[place] for place in places], scoring)
        for place, score in zip(places, generated, strict=True):
            scores[place] = score
        return any(generated)

    def _generated(self, questions: list[Question], scoring: Scoring) -> list[float]:
        generation = scoring.generation
        parameters = {"max_new_tokens": generation.max_new_tokens, "stop": list(generation.stop)}
        items = [_item(question) for question in questions]
        answers = self._call("/generate_batch", {"items": items, "parameters": parameters})
        return [
            scoring.metric.score(str(answer["generated_text"]), question.target)
            for answer, question in zip(answers, questions, strict=True)
        ]

    def _call(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Posts until an engine answers. Raises _NotTaken, Unavailable or FailedPrecondition."""
        deadline = time.monotonic() + self._timeout_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            url = self._urls[self._turn % len(self._urls)]
            failure, retry_after = self._try(url + path, body, deadline)
            if isinstance(failure, list):
                return failure
            self._turn += 1
            wait = max(pause, retry_after)
            if time.monotonic() + wait >= deadline:
                raise Unavailable(
                    "BACKEND_UNAVAILABLE",
                    f"no engine answered {path} within {self._timeout_seconds:g} s, {url} last: {failure}",
                    backend=url,
                )
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _try(
        self, url: str, body: dict[str, Any], deadline: float
    ) -> tuple[list[dict[str, Any]] | str, float]:
        """Returns the items of the answer, or why there is none and how long to wait at least."""
        try:
            response = self._client.post(url, json=body, timeout=max(0.1, deadline - time.monotonic()))
        except httpx.HTTPError as error:
            return type(error).__name__, 0.0
        if response.status_code == 422:
            raise _NotTaken(_message(response))
        if response.status_code in _RETRIED:
            return f"{response.status_code} {_message(response)}", _seconds(response)
        if response.status_code != 200:
            raise _refused(url, f"answered {response.status_code}: {_message(response)}")
        try:
            items = response.json()["items"]
        except (ValueError, KeyError, TypeError):
            raise _refused(url, "answered 200 without items") from None
        if not isinstance(items, list) or len(items) != len(body["items"]):
            raise _refused(url, "answered with another number of items than it was asked")
        return items, 0.0


def _item(question: Question) -> dict[str, Any]:
    adapters = [{"id": question.adapter, "weight": 1.0}] if question.adapter else []
    return {**question.input, "adapters": adapters}


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _seconds(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isdigit() else 0.0


def _refused(url: str, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        "BACKEND_REFUSED", f"{url} {what}: check that the backend's kind and url are right", backend=url
    )
