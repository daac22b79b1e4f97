"""What the answers of OpenAI's routes have in common."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorauter.errors import InvalidArgument, LorauterError, UnprocessableRequest
from lorauter.identifiers import BASE
from lorauter.lora.store import parse_digest
from lorauter_engine.api import wire
from lorauter_engine.api.openai_schemas import OpenAiBody
from lorauter_engine.api.schemas import pairs
from lorauter_engine.api.tgi import VERSION, Served
from lorauter_engine.domain.text import StopWatch
from lorauter_engine.domain.values import Finish, FinishReason, Job, Step

BASE_NAMES = frozenset({"", "tgi", "dummy", BASE})
"""Names of the base model beside its own; huggingface_hub sends ``dummy``."""

FINISHES = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS_TOKEN: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of one answer share."""

    served: Served
    kind: str
    prefix: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Returns an answer or a chunk with these choices."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.served.model_id,
            "system_fingerprint": f"lorauter-engine-{VERSION}-{self.served.device}",
            "choices": choices,
            **more,
        }


def adapters_of(served: Served, body: OpenAiBody) -> list[tuple[str, float]]:
    """Returns the set that ``model`` and ``adapters`` name."""
    name = body.model or ""
    if name in BASE_NAMES or name == served.model_id:
        return pairs(body.adapters, None)
    try:
        digest = parse_digest(name)
    except InvalidArgument:
        raise UnprocessableRequest(
            "MODEL_UNKNOWN",
            f"model {name[:80]!r} is unknown: use {served.model_id!r} or an adapter's digest",
            field="model",
        ) from None
    if body.adapters:
        raise UnprocessableRequest("INVALID_FIELD", "name an adapter in model or in adapters, not in both")
    return [(digest, 1.0)]


class StoppedText:
    """The text of a stream without stop sequences: what may be the beginning of one is held back."""

    def __init__(self, job: Job) -> None:
        self._stops = StopWatch(job.stop)
        self._text = ""
        self._sent = 0

    def add(self, step: Step) -> str:
        """Returns what can be sent now."""
        if step.finish is not None:
            piece = step.finish.clean_text[self._sent :]
        else:
            self._text += "" if step.token.special else step.token.text
            piece = self._text[self._sent : len(self._text) - self._stops.held_back(self._text)]
        self._sent += len(piece)
        return piece


def usage_of(finishes: Sequence[Finish]) -> dict[str, int]:
    """Returns the token counts of one or several generations."""
    prompt = sum(finish.prompt_tokens for finish in finishes)
    completion = sum(finish.generated_tokens for finish in finishes)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def openai_error(error: LorauterError) -> bytes:
    """Returns the last event of a stream that failed, as TGI writes it."""
    status, body = wire.described(error)
    return wire.event(
        {"error": {"message": body["error"], "http_status_code": status, "type": body["error_type"]}}
    )
