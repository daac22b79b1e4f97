"""Evaluates on servers that take one prompt and one adapter a request: what TGI and vLLM have in common."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorauter.backends import PLAIN, BackendAccess
from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.identifiers import backend_name
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

    Adapters are asked for as the gateway does, under the name of their folder in the adapter store. Each one
    that is new answers one question first, so that one that is broken or slow costs little. What one replica
    has and another one lacks is the backend's trouble, and no adapter's. A likelihood is the mean over the
    target's tokens, without an end.
    """

    takes_sets = False
    about = ""
    """What a replica that is there answers a GET of with a JSON object."""

    def __init__(self, urls: Sequence[str], timeout_seconds: float, access: BackendAccess = PLAIN) -> None:
        """``timeout_seconds`` bounds how long a batch may go without an answer from any replica."""
        self.replicas = Replicas(urls, timeout_seconds, access, IN_FLIGHT)
        self.calls = SingleCalls(self.replicas)
        self._alone: dict[str, SingleCalls] = {}
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

    def not_loaded(self, url: str, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """Returns the adapters that a replica says that it does not have, and what shows it.

        ``questions`` has one for each adapter, none of them asked yet.
        """
        return {}

    def not_served(self, url: str, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """Returns the adapters that a replica would answer for without having them, and what shows it.

        ``questions`` has one for each adapter, all of them answered by some replica.
        """
        return {}

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
            if question.adapter not in self._met | self.calls.refused.keys():
                first.setdefault(question.adapter, place)
        answers: dict[int, Answer] = {}
        if first:
            self._leave_out_those_away()
            self._refuse(self.not_loaded, {name: questions[place] for name, place in first.items()})
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
        for calls in self._alone.values():
            calls.close()
        self.replicas.close()

    def name(self, question: Question) -> str:
        """Returns what servers call the question's adapter; empty for the base."""
        return backend_name(question.adapter) if question.adapter else ""

    def alone(self, url: str) -> SingleCalls:
        """Returns calls to one replica by itself."""
        if len(self.replicas.urls) == 1:
            return self.calls
        if url not in self._alone:
            self._alone[url] = SingleCalls(self.replicas.alone(url))
        return self._alone[url]

    def _leave_out_those_away(self) -> None:
        """Calls no replica any more that is away now: it would come back without being looked at."""
        there = self.replicas.get(self.about)
        if there:
            self.replicas.keep(there)

    def _meet(self, answered: Sequence[Question]) -> None:
        """Refuses new adapters that the server only seems to have."""
        new = {question.adapter: question for question in answered if question.adapter not in self._met}
        if new:
            self._refuse(self.not_served, new)
            self._met.update(new)

    def _refuse(
        self,
        lacking: Callable[[str, Mapping[str, Question]], Mapping[str, str]],
        questions: Mapping[str, Question],
    ) -> None:
        """Refuses what all replicas lack; raises Unavailable (REPLICAS_DIFFER) where only some do."""
        by_url = {url: lacking(url, questions) for url in self.replicas.urls}
        for adapter in questions:
            whys = {url: found[adapter] for url, found in by_url.items() if adapter in found}
            if 0 < len(whys) < len(by_url):
                raise Unavailable(
                    "REPLICAS_DIFFER",
                    f"adapter {self.name(questions[adapter])} is not on every replica: "
                    f"{next(iter(whys.values()))}; give all the same adapters, or wait for a roll-out",
                )
            if whys:
                self.calls.refused[adapter] = Refused(Fault.DOES_NOT_LOAD, next(iter(whys.values())))

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
        bare = {_key(question): replace(question, adapter="") for question in questions}
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
