"""The span of one request to a replica, in the words of OpenTelemetry's conventions for generative AI.

Source: github.com/open-telemetry/semantic-conventions-genai, the ``inference`` span.
"""

from __future__ import annotations

import json
from functools import cache
from urllib.parse import urlsplit

from lorauter import tracing
from lorauter.gateway.v1.gateway_pb2 import Composition
from lorauter_gateway.domain.model import Answer, FinishReason, Generation, Prompt
from lorauter_gateway.domain.plan import Plan, served_model
from lorauter_gateway.ports import Endpoint

_FINISH = {
    FinishReason.EOS_TOKEN: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
}


@cache
def composition_name(composition: Composition.ValueType) -> str:
    """Returns exact, composite, single or base."""
    return Composition.Name(composition).removeprefix("COMPOSITION_").lower()


def begun(generation: Generation, plan: Plan, endpoint: Endpoint, base_model: str) -> tracing.Span:
    """Returns the started span of what is asked of a replica."""
    if not tracing.is_on():
        return tracing.OFF
    operation = "text_completion" if isinstance(generation.prompt, str) else "chat"
    model = served_model(plan.adapters, base_model)
    server = urlsplit(endpoint.url)
    attributes: dict[str, tracing.Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": endpoint.kind,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.output.type": "text",
        "server.address": server.hostname or "",
        "server.port": server.port or 0,
        "lorauter.backend": endpoint.backend_id,
        "lorauter.composition": composition_name(plan.composition),
        "lorauter.adapters": [f"{a.adapter_id}@{a.version} {a.weight:.3f}" for a in plan.adapters],
        **_sampling(generation),
    }
    if tracing.may_show_prompts():
        attributes["gen_ai.input.messages"] = _messages(generation.prompt)
    return tracing.span(f"{operation} {model}", "client", attributes)


def answered(span: tracing.Span, answer: Answer) -> None:
    """Adds what came of it."""
    if span is tracing.OFF:
        return
    span.set(
        {
            "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
            "gen_ai.response.finish_reasons": [_FINISH[answer.finish_reason]],
        }
    )
    if tracing.may_show_prompts():
        said = [{"role": "assistant", "parts": [{"type": "text", "content": answer.text}]}]
        span.set({"gen_ai.output.messages": json.dumps(said)})


def _sampling(generation: Generation) -> dict[str, tracing.Value]:
    asked = generation.sampling
    found = {
        "gen_ai.request.max_tokens": asked.max_new_tokens,
        "gen_ai.request.temperature": asked.temperature,
        "gen_ai.request.top_p": asked.top_p,
        "gen_ai.request.top_k": asked.top_k,
        "gen_ai.request.frequency_penalty": asked.frequency_penalty,
        "gen_ai.request.seed": asked.seed,
    }
    return {name: value for name, value in found.items() if value is not None}


def _messages(prompt: Prompt) -> str:
    turns = [("user", prompt)] if isinstance(prompt, str) else [(m.role, m.content) for m in prompt]
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in turns])
