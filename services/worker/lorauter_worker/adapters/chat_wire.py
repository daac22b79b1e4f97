"""OpenAI's chat completions as TGI and vLLM take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorauter.prompts import GenerationSpec
from lorauter_worker.ports import Question

CHAT_PATH = "/v1/chat/completions"


def chat_body(model: str, question: Question, generation: GenerationSpec) -> dict[str, Any]:
    """Returns the body for a question of messages; temperature 0 is greedy with both."""
    return {"model": model, "messages": question.input["messages"], **settings(generation)}


def settings(generation: GenerationSpec) -> dict[str, Any]:
    """Returns a task's generation settings in OpenAI's words."""
    stop = {"stop": list(generation.stop)} if generation.stop else {}
    return {"max_tokens": generation.max_new_tokens, "temperature": 0, **stop}


def chat_text(body: Mapping[str, Any]) -> str:
    """Returns what an answer says; raises as a parser does."""
    content = body["choices"][0]["message"]["content"]
    if content is not None and not isinstance(content, str):
        raise TypeError("content is no text")
    return content or ""
