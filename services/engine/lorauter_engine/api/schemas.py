"""The bodies of TGI's requests and what all bodies share. Unknown fields are ignored, as TGI does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorauter.errors import UnprocessableRequest
from lorauter_engine.service.prepare import MAX_TOP_TOKENS, Wish

MAX_BEST_OF = 4
"""Most answers of which the likeliest is chosen."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64)]


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="ignore", strict=False, hide_input_in_errors=True)


def refuse(asked: Mapping[str, bool], verb: str = "does not serve") -> None:
    """Raises UnprocessableRequest (UNSUPPORTED_FIELD) for the first field that asks for anything."""
    for field, is_asked in asked.items():
        if is_asked:
            message = f"{field} asks for what this engine {verb}: leave it out"
            raise UnprocessableRequest("UNSUPPORTED_FIELD", message, field=field)


class WeightedAdapter(Body):
    """One adapter of a set: its digest, and the factor on its contribution (negative ones too)."""

    id: str = Field(min_length=1, max_length=256)
    weight: Finite = 1.0


Adapters = Annotated[list[WeightedAdapter], Field(max_length=256)]


class GenerateParameters(Body):
    """TGI's parameters, and ``adapters``."""

    adapter_id: str | None = Field(None, max_length=256)
    adapters: Adapters | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_BEST_OF)
    decoder_input_details: bool = False
    details: bool = False
    do_sample: bool = False
    frequency_penalty: Penalty | None = None
    grammar: Any = None
    max_new_tokens: int | None = Field(None, ge=1)
    repetition_penalty: Positive | None = None
    return_full_text: bool | None = None
    seed: Seed | None = None
    stop: Stops = Field(default_factory=list)
    temperature: Positive | None = None
    top_k: int | None = Field(None, ge=1)
    top_n_tokens: int | None = Field(None, ge=0, le=MAX_TOP_TOKENS)
    top_p: Share | None = None
    truncate: int | None = Field(None, ge=1)
    typical_p: Share | None = None
    watermark: bool = False

    @model_validator(mode="after")
    def _served(self) -> Self:
        refuse(
            {
                "parameters.grammar": self.grammar is not None,
                "parameters.watermark": self.watermark,
            }
        )
        if self.candidates > 1 and self.seed is not None:
            field = "parameters.best_of"
            message = f"{field}: leave out the seed, which would make all answers one"
            raise UnprocessableRequest("EXCLUSIVE_FIELDS", message, field=field)
        if self.adapter_id and self.adapters:
            field = "parameters.adapters"
            raise UnprocessableRequest(
                "EXCLUSIVE_FIELDS", f"{field}: give adapter_id or adapters, not both", field=field
            )
        return self

    @property
    def candidates(self) -> int:
        """How many answers are made, of which the likeliest is given."""
        return self.best_of or 1

    def wish(self, is_quiet: bool = False) -> Wish:
        """Returns what is asked for, in the service's words."""
        return Wish(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.do_sample,
            seed=self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            truncate=self.truncate,
            top_n_tokens=self.top_n_tokens or 0,
            wants_prefill=self.decoder_input_details,
            is_quiet=is_quiet,
            adapters=pairs(self.adapters, self.adapter_id),
        )


class GenerateRequest(Body):
    """Body of /generate, /generate_stream, / and /tokenize."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool = False

    def given(self) -> GenerateParameters:
        """Returns the parameters; TGI samples when there are none at all, and is greedy otherwise."""
        return self.parameters if self.parameters is not None else GenerateParameters(do_sample=True)


class TextChunk(Body):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(Body):
    """A chat message. Content in parts is joined; only text is served."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
    role: str = Field(min_length=1, max_length=64)
    content: str | list[TextChunk]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Returns role and text for the chat template; raises ValueError for what is not text."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        if any(chunk.type != "text" or chunk.text is None for chunk in self.content):
            raise ValueError("only text is served in messages")
        return {"role": self.role, "content": "".join(chunk.text or "" for chunk in self.content)}


Messages = Annotated[list[Message], Field(min_length=1, max_length=1024)]


def pairs(adapters: list[WeightedAdapter] | None, adapter_id: str | None) -> list[tuple[str, float]]:
    """Returns (id, weight) of a set, or of the one adapter with weight 1."""
    if adapters:
        return [(adapter.id, adapter.weight) for adapter in adapters]
    return [(adapter_id, 1.0)] if adapter_id else []
