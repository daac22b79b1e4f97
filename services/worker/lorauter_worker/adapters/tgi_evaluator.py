"""Evaluates on Hugging Face TGI by its own protocol.

Source: TGI 3.3's router (``server.rs``, ``lib.rs``) and docs/openapi.json. Not through huggingface_hub: its
client drops ``adapter_id`` on a 400 that it does not like, and asks again, so that the base answers unseen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.errors import Unavailable
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.chat_wire import CHAT_PATH, chat_body, chat_text
from lorauter_worker.adapters.completion_evaluator import CompletionEvaluator, ReadToken, without_stop
from lorauter_worker.adapters.replicas import Failure
from lorauter_worker.adapters.single_calls import NotFiniteError, Request
from lorauter_worker.ports import Question

BASE_MODEL = "tgi"
"""What TGI's OpenAI routes call the base, of whatever name."""

SAME = 1e-3
"""Mean difference of tokens' log-probabilities (nats) up to which an adapter answers as the base."""


class TgiEvaluator(CompletionEvaluator):
    """An Evaluator on TGI. Likelihoods come with a raw prompt's prefill; for messages there are none.

    TGI answers an unknown adapter's requests with the base and lists no adapters. So every adapter reads
    one text that the base reads too: where all tokens are as likely, the adapter is not there.
    """

    _probed: tuple[str, Sequence[float | None]] | None = None
    """The text, and what the base makes of it."""

    def answer_request(self, question: Question, generation: GenerationSpec) -> Request:
        """See CompletionEvaluator."""
        if "messages" in question.input:
            return CHAT_PATH, chat_body(self.name(question) or BASE_MODEL, question, generation)
        parameters: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": generation.max_new_tokens,
            "details": True,
            "return_full_text": False,
        }
        if generation.stop:
            parameters["stop"] = list(generation.stop)
        return self._generate(question.input["prompt"], self.name(question), parameters)

    def read_answer(self, body: Mapping[str, Any], generation: GenerationSpec) -> str:
        """See CompletionEvaluator."""
        if "choices" in body:
            return without_stop(chat_text(body), generation)
        # JSON has no NaN: TGI writes null
        if any(token["logprob"] is None for token in body["details"]["tokens"]):
            raise NotFiniteError
        return without_stop(str(body["generated_text"]), generation)

    def reading_request(self, question: Question, target: str) -> Request | None:
        """See CompletionEvaluator."""
        if "prompt" not in question.input:
            return None
        return self._reading(question.input["prompt"] + target, self.name(question))

    def read_tokens(self, body: Mapping[str, Any]) -> Sequence[ReadToken]:
        """See CompletionEvaluator."""
        return [(int(token["id"]), token["logprob"]) for token in body["details"]["prefill"]]

    def not_served(self, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """See CompletionEvaluator."""
        if self._probed is None:
            text = _text(next(iter(questions.values())))
            self._probed = text, self._read_with([""], text)[0]
        text, base = self._probed
        names = [self.name(question) for question in questions.values()]
        found = zip(questions, names, self._read_with(names, text), strict=True)
        return {
            adapter: f"not loaded by {', '.join(self.replicas.urls)}, which answers {name!r} as it answers "
            "without an adapter: list it in LORA_ADAPTERS"
            for adapter, name, logprobs in found
            if _is_same(base, logprobs)
        }

    def _read_with(self, names: Sequence[str], text: str) -> list[Sequence[float | None]]:
        """Has adapters, or the base without a name, read a text; returns all log-probabilities."""
        read: list[Sequence[float | None]] = []
        for reply in self.calls.post([self._reading(text, name) for name in names]):
            if isinstance(reply, Failure):
                raise Unavailable(
                    "BACKEND_UNAVAILABLE", f"TGI does not read what it answered: {reply.detail}"
                )
            read.append(self.calls.parsed(_all_logprobs, reply))
        return read

    def _reading(self, text: str, name: str) -> Request:
        parameters = {
            "do_sample": False,
            "max_new_tokens": 1,
            "details": True,
            "decoder_input_details": True,
        }
        return self._generate(text, name, parameters)

    def _generate(self, text: str, name: str, parameters: dict[str, Any]) -> Request:
        adapter = {"adapter_id": name} if name else {}
        return "/generate", {"inputs": text, "parameters": parameters | adapter}


def _all_logprobs(body: Mapping[str, Any]) -> Sequence[float | None]:
    details = body["details"]
    return [token["logprob"] for token in (*details["prefill"], *details["tokens"])]


def _text(question: Question) -> str:
    if "prompt" in question.input:
        return str(question.input["prompt"])
    return "\n".join(str(message["content"]) for message in question.input["messages"])


def _is_same(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    pairs = [
        (a, b)
        for a, b in zip(first, second, strict=False)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    is_comparable = bool(pairs) and len(first) == len(second)
    return is_comparable and sum(abs(a - b) for a, b in pairs) / len(pairs) <= SAME
