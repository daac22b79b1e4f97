"""Evaluates on vLLM by its OpenAI-compatible protocol.

Source: vLLM 0.33's entrypoints/openai. ``model`` names the adapter; ``prompt_logprobs`` is vLLM's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.errors import Unavailable
from lorauter.prompts import GenerationSpec
from lorauter_worker.adapters.chat_wire import CHAT_PATH, chat_body, chat_text, settings
from lorauter_worker.adapters.completion_evaluator import CompletionEvaluator, ReadToken
from lorauter_worker.adapters.replicas import Failure
from lorauter_worker.adapters.single_calls import Request
from lorauter_worker.ports import Question

_DIGEST = re.compile(r"[0-9a-f]{64}")


class VllmEvaluator(CompletionEvaluator):
    """An Evaluator on vLLM. Likelihoods are prompt_logprobs, for raw prompts and messages.

    It loads and unloads nothing: gateways share out the servers' slots among themselves, and a worker that
    took some would have adapters leave that are in use. What is to be measured must be there, or must come
    when it is asked for: by vLLM's own filesystem resolver on the folder of the adapter store, whose loads
    gateways find in the server's list. Each replica is asked once for what it does not list. vLLM refuses
    unknown adapters; other servers of this protocol may answer them with the base, so an adapter counts only
    if /v1/models lists it then.
    """

    about = "/v1/models"
    _base = ""

    def answer_request(self, question: Question, generation: GenerationSpec) -> Request:
        """See CompletionEvaluator."""
        model = self._model(question)
        if "messages" in question.input:
            return CHAT_PATH, chat_body(model, question, generation)
        prompt = question.input["prompt"]
        return "/v1/completions", {"model": model, "prompt": prompt, **settings(generation)}

    def read_answer(self, body: Mapping[str, Any], generation: GenerationSpec) -> str:
        """See CompletionEvaluator."""
        choice = body["choices"][0]
        return str(choice["text"]) if "text" in choice else chat_text(body)

    def reading_request(self, question: Question, target: str) -> Request | None:
        """See CompletionEvaluator."""
        body = {"model": self._model(question), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        if "prompt" in question.input:
            return "/v1/completions", body | {"prompt": question.input["prompt"] + target}
        messages = list(question.input["messages"])
        if target:
            messages.append({"role": "assistant", "content": target})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return CHAT_PATH, body | {"messages": messages}

    def read_tokens(self, body: Mapping[str, Any]) -> Sequence[ReadToken]:
        """See CompletionEvaluator."""
        # a completion's are its choice's, a chat's are its own; with 0 there is one candidate a token
        told = body["choices"][0].get("prompt_logprobs") or body.get("prompt_logprobs") or []
        candidates = [next(iter(token.items())) if token else None for token in told]
        return [(int(each[0]), each[1]["logprob"]) if each else (-1, None) for each in candidates]

    def not_loaded(self, url: str, questions: Mapping[str, Question]) -> Mapping[str, str]:
        """See CompletionEvaluator."""
        models = self._listed().get(url, {})
        unlisted = [question for question in questions.values() if self.name(question) not in models]
        said = self._resolve(url, unlisted)
        models = self._listed().get(url, {}) if unlisted else models
        missing = {}
        for adapter, question in questions.items():
            name = self.name(question)
            root = str(models.get(name, {}).get("root") or "")
            digests = _DIGEST.findall(root)
            if name not in models:
                missing[adapter] = (
                    f"not loaded by {url}: /v1/models does not list {name}{said.get(name, '')}; load it, or "
                    "set VLLM_PLUGINS=lora_filesystem_resolver, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and "
                    "VLLM_LORA_RESOLVER_CACHE_DIR to the folder of the adapter store"
                )
            elif digests and name not in digests:
                missing[adapter] = f"{url} has other content loaded as {name}: {root[:300]}"
        return missing

    def _resolve(self, url: str, questions: Sequence[Question]) -> Mapping[str, str]:
        """Asks for adapters that are not listed, so that a resolver loads them; returns refusals by name."""
        names = [self.name(question) for question in questions]
        probe = _shortest(self._base_model())
        replies = self.alone(url).sent([_shortest(name) for name in names], probe) if names else []
        said = zip(names, replies, strict=True)
        return {name: f" ({reply.detail})" for name, reply in said if isinstance(reply, Failure)}

    def _model(self, question: Question) -> str:
        return self.name(question) or self._base_model()

    def _base_model(self) -> str:
        """Returns the name of the model that no other one is the parent of."""
        if not self._base:
            models = next(iter(self._listed().values()))
            self._base = next((name for name, model in models.items() if not model.get("parent")), "")
        return self._base

    def _listed(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Returns the models that each replica lists, by their ids."""
        listed = {}
        for url, body in self.replicas.get("/v1/models").items():
            data = body.get("data")
            if isinstance(data, list):
                listed[url] = {str(model.get("id")): model for model in data if isinstance(model, dict)}
        if not listed:
            raise Unavailable(
                "BACKEND_UNAVAILABLE", f"{', '.join(self.replicas.urls)} lists no models at /v1/models"
            )
        return listed


def _shortest(model: str) -> Request:
    return "/v1/completions", {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
