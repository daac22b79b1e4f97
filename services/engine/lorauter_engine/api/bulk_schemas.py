"""The bodies of the bulk routes."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from lorauter_engine.api.schemas import Adapters, Body, GenerateParameters, Messages, refuse

MAX_ITEMS = 1024
"""Most items in one bulk call."""


class _Item(Body):
    prompt: str | None = None
    messages: Messages | None = None
    adapters: Adapters = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    def text(self) -> str | list[dict[str, str]]:
        """Returns the raw prompt or the messages."""
        if self.messages is not None:
            return [message.plain() for message in self.messages]
        return self.prompt or ""


class ScoredItem(_Item):
    """A target to be scored after a prompt."""

    target: str


class _Bulk(Body):
    """What both bodies share. With ``partial``, an item that fails does not fail the others.

    It is answered ``{"error", "reason", "fault"}``. fault: ``item`` (the prompt or target is at fault),
    ``adapter`` (it does not load), ``output`` (logits that are not finite) or ``busy`` (adapters in use fill
    the memory: ask again). Without it the first failure is the answer to the call.
    """

    partial: bool = False


class ScoreRequest(_Bulk):
    """Body of /score."""

    items: Annotated[list[ScoredItem], Field(max_length=MAX_ITEMS)]


class BulkItem(_Item):
    """A prompt to be continued."""


class GenerateBatchRequest(_Bulk):
    """Body of /generate_batch. The parameters hold for all items; each has its own adapters."""

    items: Annotated[list[BulkItem], Field(max_length=MAX_ITEMS)]
    parameters: GenerateParameters = Field(default_factory=GenerateParameters)

    @model_validator(mode="after")
    def _served(self) -> Self:
        refuse({"parameters.best_of": self.parameters.candidates > 1})
        return self
