"""Text Generation Inference's routes, so that its clients work unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lorauter.access import caller
from lorauter.errors import InvalidArgument
from lorauter_gateway.api.bodies import Body, BodyRoute
from lorauter_gateway.api.dialects import tgi_error_event
from lorauter_gateway.api.headers import serving_headers
from lorauter_gateway.api.routing import RoutingBody, routing_request
from lorauter_gateway.api.streams import EventStream, tgi_event, while_connected
from lorauter_gateway.domain.model import MAX_STOPS, Generation, Sampling, sampling
from lorauter_gateway.domain.target import parse_target
from lorauter_gateway.service import Gateway, OpenStream

_ROUTE = "tgi"


class Parameters(BaseModel):
    """TGI's parameters. Those that are not named here are passed on to the backend."""

    model_config = ConfigDict(extra="allow")

    adapter_id: str | None = Field(None, description="Pins an adapter. Absent: the router decides.")
    details: bool = False
    do_sample: bool | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stop: list[str] = Field(default=[], max_length=MAX_STOPS)

    @property
    def wants_details(self) -> bool:
        """Whether a whole answer has details; TGI gives them for the prompt's tokens, too."""
        return self.details or bool((self.model_extra or {}).get("decoder_input_details"))

    def sampling(self) -> Sampling:
        """Returns how to sample; raises InvalidArgument (UNSUPPORTED_FIELD) for ``adapters``."""
        extra = self.model_extra or {}
        if extra.get("adapters") is not None:
            field = "parameters.adapters"
            message = f"{field}: pin one with adapter_id, or let the router decide"
            raise InvalidArgument("UNSUPPORTED_FIELD", message, field=field)
        return sampling(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.do_sample or None,  # TGI: a temperature samples even if do_sample is false
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
            extra={name: value for name, value in extra.items() if value is not None},
        )


class GenerateBody(Body):
    """The body of /generate, /generate_stream and /."""

    inputs: str = Field(min_length=1)
    parameters: Parameters | None = None
    stream: bool = False
    model: Any = None
    lorauter: RoutingBody | None = Field(None, description="Restrictions on routing.")

    def adapter_id(self) -> str:
        """Returns what is to answer, empty for the router's choice.

        Raises InvalidArgument (EXCLUSIVE_FIELDS) where ``model``, which is no field of TGI's, names it, too.
        """
        named = self.parameters.adapter_id if self.parameters else None
        if named and self.model is not None:
            message = "model: parameters.adapter_id names what answers on this route; leave model out"
            raise InvalidArgument("EXCLUSIVE_FIELDS", message, field="model")
        return named or ""


def tgi_routes(gateway: Gateway, timeout_seconds: float, max_concurrent_requests: int) -> APIRouter:
    """Returns TGI's routes."""
    routes = APIRouter(tags=["TGI"], route_class=BodyRoute)

    def read(body: GenerateBody) -> Generation:
        parameters = body.parameters or Parameters()
        target = parse_target(body.adapter_id(), gateway.pools(caller()))
        routing = routing_request(body.lorauter)
        return Generation(body.inputs, target, parameters.sampling(), timeout_seconds, caller(), routing)

    async def whole(request: Request, body: GenerateBody) -> tuple[dict[str, Any], dict[str, str]]:
        answer, serving = await while_connected(request, gateway.generate(read(body), _ROUTE))
        found: dict[str, Any] = {"generated_text": answer.text}
        if body.parameters and body.parameters.wants_details:
            found["details"] = answer.details
        headers = {
            **serving_headers(serving),
            "x-prompt-tokens": str(answer.usage.prompt_tokens),
            "x-generated-tokens": str(answer.usage.completion_tokens),
        }
        return found, headers

    async def streamed(request: Request, body: GenerateBody) -> Response:
        stream = await while_connected(request, gateway.stream(read(body), _ROUTE))
        has_details = bool(body.parameters and body.parameters.details)
        events = _events(stream, has_details)
        return EventStream(stream, events, tgi_error_event, serving_headers(stream.serving))

    @routes.post("/")
    async def compatible(request: Request, body: GenerateBody) -> Response:
        """Generates; streams if ``stream`` is true, else answers a list of one."""
        if body.stream:
            return await streamed(request, body)
        found, headers = await whole(request, body)
        return JSONResponse([found], headers=headers)

    @routes.post("/generate")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """Generates in one piece."""
        found, headers = await whole(request, body)
        return JSONResponse(found, headers=headers)

    @routes.post("/generate_stream")
    async def generate_stream(request: Request, body: GenerateBody) -> Response:
        """Generates token by token."""
        return await streamed(request, body)

    @routes.get("/info")
    async def info() -> dict[str, Any]:
        """Describes what is served; the limits are those of a backend of the first pool."""
        return {**await _described(gateway), "max_concurrent_requests": max_concurrent_requests}

    return routes


async def _described(gateway: Gateway) -> dict[str, Any]:
    pool, limits = await gateway.describe(caller())
    return {
        "model_id": pool.base_model,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "model_pipeline_tag": "text-generation",
        "router": "lorauter-gateway",
        "version": "1",
    }


async def _events(stream: OpenStream, has_details: bool) -> AsyncIterator[str]:
    index = 0
    async for piece in stream:
        index += 1
        token = piece.token or {"id": 0, "text": piece.text, "logprob": None, "special": False}
        found: dict[str, Any] = {"index": index, "token": token, "generated_text": None, "details": None}
        if piece.top_tokens is not None:
            found["top_tokens"] = piece.top_tokens
        if piece.finish is not None:
            found["generated_text"] = piece.finish.text
            found["details"] = piece.finish.details if has_details else None
        yield tgi_event(found)
