"""Evaluates on Hugging Face TGI by its own protocol.

Source: TGI 3.3's router (``server.rs``, ``lib.rs``) and docs/openapi.json. Not through huggingface_hub: its
client drops ``adapter_id`` on a 400 that it does not like, and asks again, so that the base answers unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.backends import PLAIN, BackendAccess
from lorauter.canary import CANARY_TEXT, Reading, has_effect
from lorauter.errors import Unavailable
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.chat_wire import CHAT_PATH, chat_body, chat_text
from lorauter_worker.adapters.completion_evaluator import CompletionEvaluator, ReadToken, without_stop
from lorauter_worker.adapters.replicas import Failure
from lorauter_worker.adapters.single_calls import NotFiniteError, Request
from lorauter_worker.ports import Question

BASE_MODEL = "tgi"
"""What TGI's OpenAI routes call the base, of whatever name."""


class TgiEvaluator(CompletionEvaluator):
    """An Evaluator on TGI. Likelihoods come with a raw prompt's prefill; for messages there are none.

    TGI answers an unknown adapter's requests with the base, and lists no adapters. So every adapter reads the
    canary on every replica, beside the base: where it changes nothing, it is not there. TGI loads adapters at
    its start only, from LORA_ADAPTERS: ``<name>=<path>``, where the name is that of the folder.
    """

    about = "/info"

    def __init__(self, urls: Sequence[str], timeout_seconds: float, access: BackendAccess = PLAIN) -> None:
        """See CompletionEvaluator."""
        super().__init__(urls, timeout_seconds, access)
        self._bases: dict[str, Reading] = {}
        """What each replica's base makes of the canary."""

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

    def not_served(self, url: str, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """See CompletionEvaluator."""
        if url not in self._bases:
            self._bases[url] = self._read_with(url, [""])[0]
        names = [self.name(question) for question in questions.values()]
        *readings, again = self._read_with(url, [*names, ""])
        return {
            adapter: f"not loaded by {url}, which answers {name} as it answers without an adapter: list "
            f"{name}=<its folder in the adapter store> in LORA_ADAPTERS"
            for adapter, name, reading in zip(questions, names, readings, strict=True)
            if has_effect(self._bases[url], reading, again) is False
        }

    def _read_with(self, url: str, names: Sequence[str]) -> list[Reading]:
        """Has adapters, or the base without a name, read the canary."""
        calls = self.alone(url)
        read: list[Reading] = []
        for reply in calls.post([self._reading(CANARY_TEXT, name) for name in names]):
            if isinstance(reply, Failure):
                raise Unavailable(
                    "BACKEND_UNAVAILABLE",
                    f"{url} does not read {len(CANARY_TEXT)} characters: {reply.detail}",
                )
            read.append(calls.parsed(_logprobs, reply))
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


def _logprobs(body: Mapping[str, Any]) -> Reading:
    return [token["logprob"] for token in body["details"]["prefill"]]
