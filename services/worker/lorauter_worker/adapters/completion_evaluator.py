"""Evaluates on servers that take one prompt and one adapter a request: what TGI and vLLM have in common."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorauter.errors import FailedPrecondition
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.replicas import Failure, Replicas
from lorauter_worker.adapters.single_calls import Asking, NotFiniteError, Request, SingleCalls
from lorauter_worker.ports import UNLIKELY, Answer, Fault, Question, Refused, Scoring

IN_FLIGHT = 16
"""Requests at once on each replica; these servers batch what runs side by side."""

ReadToken = tuple[int, float | None]
"""A token's id and log-probability (nats); the first of a text has none."""


class CompletionEvaluator(ABC):
    """An Evaluator that scores generated text, or the target's likelihood where the protocol tells it.

    Each adapter that is new to it answers one question first, so that one that is broken, slow or not
    there costs little. A likelihood is the mean over the target's tokens, without an end.
    """

    takes_sets = False

    def __init__(self, urls: Sequence[str], timeout_seconds: float) -> None:
        """``timeout_seconds`` bounds how long a batch may go without an answer from any replica."""
        self.replicas = Replicas(urls, timeout_seconds, IN_FLIGHT)
        self.calls = SingleCalls(self.replicas)
        self._met: set[str] = {""}
        self._tells_targets = False
        self._prompts: dict[str, list[int]] = {}

    @abstractmethod
    def answer_request(self, question: Question, generation: GenerationSpec) -> Request:
        """Returns how a question is asked; the base where ``question.adapter`` is empty."""

    @abstractmethod
    def read_answer(self, body: Mapping[str, Any], generation: GenerationSpec) -> str:
        """Returns the generated text without a stop text. Raises NotFiniteError, or as a parser does."""

    @abstractmethod
    def reading_request(self, question: Question, target: str) -> Request | None:
        """Returns how the prompt with the target after it is read; None if that cannot be asked for."""

    @abstractmethod
    def read_tokens(self, body: Mapping[str, Any]) -> Sequence[ReadToken]:
        """Returns the tokens that were read, empty if the server does not tell. Raises as a parser does."""

    @abstractmethod
    def not_served(self, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """Returns adapters for which the server answered without having them, and what shows it.

        ``questions`` has one for each adapter.
        """

    def evaluate(
        self, questions: Sequence[Question], scoring: Scoring, likelihood_only: bool = False
    ) -> list[Answer | Refused]:
        """See Evaluator."""
        by_likelihood = likelihood_only or not scoring.metric.reads_text
        if by_likelihood and questions:
            self._read_prompts(questions)
        asking = self._likelihoods(scoring, likelihood_only) if by_likelihood else self._texts(scoring)
        first: dict[str, int] = {}
        for place, question in enumerate(questions):
            if question.adapter not in self._met:
                first.setdefault(question.adapter, place)
        answers: dict[int, Answer] = {}
        rest = sorted(set(range(len(questions))) - set(first.values()))
        for places in (list(first.values()), rest):
            more = self.calls.ask({place: questions[place] for place in places}, asking)
            self._meet([questions[place] for place in more])
            answers |= more
        nothing = Answer(math.nan if likelihood_only else 0.0, UNLIKELY if by_likelihood else math.nan)
        return [
            self.calls.refused.get(question.adapter) or answers.get(place, nothing)
            for place, question in enumerate(questions)
        ]

    def close(self) -> None:
        """See Evaluator."""
        self.replicas.close()

    def name(self, question: Question) -> str:
        """Returns what the server calls the question's adapter."""
        return question.adapter_id or question.adapter

    def _meet(self, answered: Sequence[Question]) -> None:
        """Refuses new adapters that the server only seems to have."""
        new = {question.adapter: question for question in answered if question.adapter not in self._met}
        if new:
            for adapter, why in self.not_served(new).items():
                self.calls.refused[adapter] = Refused(Fault.DOES_NOT_LOAD, why)
            self._met.update(new)

    def _texts(self, scoring: Scoring) -> Asking:
        def read(question: Question, body: Mapping[str, Any]) -> Answer:
            text = self.read_answer(body, scoring.generation)
            return Answer(scoring.metric.score(text, question.target), math.nan)

        return Asking(lambda question: self.answer_request(question, scoring.generation), read)

    def _likelihoods(self, scoring: Scoring, likelihood_only: bool) -> Asking:
        def request(question: Question) -> Request | None:
            is_read = _key(question) in self._prompts
            return self.reading_request(question, question.target) if is_read else None

        def read(question: Question, body: Mapping[str, Any]) -> Answer:
            likelihood = _mean(self.read_tokens(body), self._prompts[_key(question)])
            score = math.nan if likelihood_only else scoring.metric.from_pass(False, likelihood)
            return Answer(score, likelihood)

        return Asking(request, read)

    def _read_prompts(self, questions: Sequence[Question]) -> None:
        """Has the base read the prompts that are new; those that it does not take stay unread.

        Raises FailedPrecondition (LIKELIHOOD_UNSUPPORTED), after one question at most.
        """
        bare = {_key(question): replace(question, adapter="", adapter_id="") for question in questions}
        self._tells_targets = self._tells_targets or any(map(self._check_reading, bare.values()))
        new = {key: question for key, question in bare.items() if key not in self._prompts}
        for key, tokens in zip(new, self._read([(each, "") for each in new.values()]), strict=True):
            if tokens:
                self._prompts[key] = [token for token, _ in tokens]

    def _check_reading(self, question: Question) -> bool:
        """Finds out whether a target's tokens can be told: they follow the prompt's, and nothing them.

        Returns False where the question is not taken, which shows nothing.
        """
        prompt, whole = self._read([(question, ""), (question, question.target)])
        if prompt is None or whole is None:
            return False
        if not prompt or not whole:
            raise self._unsupported()
        shared = _shared(whole, [token for token, _ in prompt])
        is_closed = shared < len(prompt) and whole[-1][0] == prompt[-1][0]
        if shared < len(prompt) - 1 or is_closed:
            raise self._unsupported()
        return True

    def _read(self, asked: Sequence[tuple[Question, str]]) -> list[Sequence[ReadToken] | None]:
        """Has questions' prompts read with a text after each; None for what is not taken."""
        requests = [self.reading_request(question, text) for question, text in asked]
        known = [request for request in requests if request is not None]
        if len(known) < len(requests):
            raise self._unsupported()
        return [
            None if isinstance(reply, Failure) else self.calls.parsed(self.read_tokens, reply)
            for reply in self.calls.post(known)
        ]

    def _unsupported(self) -> FailedPrecondition:
        return FailedPrecondition(
            "LIKELIHOOD_UNSUPPORTED",
            f"{', '.join(self.replicas.urls)} tells no likelihood of a given text after such prompts: use a "
            "metric that reads text and a strategy that needs no likelihood, or measure on an engine",
        )


def _shared(tokens: Sequence[ReadToken], prompt: Sequence[int]) -> int:
    """Returns how many tokens at the beginning are the prompt's; the last may have grown into the target."""
    pairs = zip(tokens, prompt, strict=False)
    return next(
        (at for at, ((token, _), held) in enumerate(pairs) if token != held), min(len(tokens), len(prompt))
    )


def _mean(tokens: Sequence[ReadToken], prompt: Sequence[int]) -> float:
    """Returns the target's mean log-probability; raises NotFiniteError."""
    target = [logprob for _, logprob in tokens[_shared(tokens, prompt) :] or tokens[-1:]]
    known = [logprob for logprob in target if logprob is not None and math.isfinite(logprob)]
    if len(known) < len(target):
        raise NotFiniteError
    return sum(known) / len(known)


def without_stop(text: str, generation: GenerationSpec) -> str:
    """Returns a text without the stop text that it ends with, which TGI leaves in."""
    for stop in generation.stop:
        if stop and text.endswith(stop):
            return text[: -len(stop)]
    return text


def _key(question: Question) -> str:
    return json.dumps(question.input, sort_keys=True)
