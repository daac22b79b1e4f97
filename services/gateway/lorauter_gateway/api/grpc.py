"""The gateway's gRPC service."""
# ruff: noqa: N802 - the generated base class names the methods

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc

from lorauter.access import Caller, caller
from lorauter.errors import InvalidArgument, PermissionDenied
from lorauter.gateway.v1 import gateway_pb2 as pb
from lorauter.gateway.v1 import gateway_pb2_grpc
from lorauter.router.v1.router_pb2 import WeightedAdapter
from lorauter.server.access import denied
from lorauter.server.grpc import Context
from lorauter_gateway.domain.model import (
    MAX_STOPS,
    Answer,
    FinishReason,
    Generation,
    Message,
    Prompt,
    Sampling,
    sampling,
)
from lorauter_gateway.domain.stops import StopTrimmer, without_stop
from lorauter_gateway.domain.target import requested_target
from lorauter_gateway.service import Gateway, Serving

_ROUTE = "grpc"
_LAST_MESSAGE_SECONDS = 1.0
"""How long the status of a call whose time is up may take to be sent."""
_ROLES = frozenset({"system", "user", "assistant", "tool"})
_FINISH = {
    FinishReason.EOS_TOKEN: pb.FINISH_REASON_EOS_TOKEN,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
}


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Translates lorauter.gateway.v1.GatewayService. Cancelling a call stops its generation."""

    def __init__(self, gateway: Gateway, timeout_seconds: float) -> None:
        self._gateway = gateway
        self._timeout_seconds = timeout_seconds

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """See the proto."""
        generation = self._read(request, context)
        answer, serving = await self._gateway.generate(generation, _ROUTE)
        context.set_trailing_metadata(tuple(serving.quota.items()))
        return pb.GenerateResponse(
            text=without_stop(answer.text, generation.sampling.stop),
            decision=serving.decision,
            served=_served(serving),
            usage=_usage(answer),
            finish_reason=_FINISH[answer.finish_reason],
        )

    async def GenerateStream(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """See the proto."""
        generation = self._read(request, context)
        trimmer = StopTrimmer(generation.sampling.stop)
        stream = await self._gateway.stream(generation, _ROUTE)
        context.set_trailing_metadata(tuple(stream.serving.quota.items()))
        async with aclosing(stream), _given_up(stream.deadline, context):
            yield pb.GenerateStreamResponse(decision=stream.serving.decision, served=_served(stream.serving))
            async for piece in stream:
                text = trimmer.push(piece.text)
                if piece.finish is not None:
                    yield pb.GenerateStreamResponse(
                        text=text + trimmer.finish(),
                        usage=_usage(piece.finish),
                        finish_reason=_FINISH[piece.finish.finish_reason],
                    )
                elif text:
                    yield pb.GenerateStreamResponse(text=text)

    def _read(self, request: pb.GenerateRequest, context: Context) -> Generation:
        remaining = context.time_remaining()
        seconds = self._timeout_seconds if remaining is None else min(self._timeout_seconds, remaining)
        return Generation(
            _prompt(request),
            requested_target(request),
            _sampling(request.parameters),
            seconds,
            _acting_for(request.routing.tenant),
            request.routing,
        )


@asynccontextmanager
async def _given_up(deadline: float, context: Context) -> AsyncIterator[None]:
    """Ends the call some time after ``deadline``: sending waits for a caller that does not read."""
    handler = asyncio.current_task()
    assert handler is not None

    async def end() -> None:
        await asyncio.sleep(deadline + _LAST_MESSAGE_SECONDS - asyncio.get_running_loop().time())
        handler.cancel()
        with suppress(grpc.aio.AbortError, asyncio.InvalidStateError):
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the caller did not read the answer in time"
            )

    ending = asyncio.create_task(end())
    try:
        yield
    finally:
        if not handler.cancelling():
            ending.cancel()


def _acting_for(tenant: str) -> Caller:
    who = caller()
    try:
        return who.acting_for(tenant)
    except PermissionDenied as error:
        denied(error, "routing.tenant of lorauter.gateway.v1.GenerateRequest", who)
        raise


def _prompt(request: pb.GenerateRequest) -> Prompt:
    if request.prompt and request.messages:
        raise InvalidArgument("EXCLUSIVE_FIELDS", "set prompt or messages, not both", field="messages")
    if request.prompt:
        return request.prompt
    if not request.messages:
        raise InvalidArgument("MISSING_FIELD", "prompt: set it, or messages", field="prompt")
    for number, message in enumerate(request.messages):
        if message.role not in _ROLES:
            field = f"messages[{number}].role"
            raise InvalidArgument(
                "INVALID_FIELD",
                f"{field} {message.role[:40]!r}: use system, user, assistant or tool",
                field=field,
            )
    return tuple(Message(message.role, message.content) for message in request.messages)


def _sampling(given: pb.GenerationParameters) -> Sampling:
    present: dict[str, Any] = {field.name: value for field, value in given.ListFields()}
    for name, is_good, rule in (
        ("max_new_tokens", given.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 < given.temperature < math.inf, "greater than 0 and finite"),
        ("top_p", 0 < given.top_p <= 1, "greater than 0 and at most 1"),
        ("top_k", given.top_k >= 1, "at least 1"),
        (
            "repetition_penalty",
            0 < given.repetition_penalty < math.inf,
            "greater than 0 and finite",
        ),
    ):
        if name in present and not is_good:
            raise _bad(name, rule)
    if len(given.stop) > MAX_STOPS or not all(given.stop):
        raise _bad("stop", f"at most {MAX_STOPS} texts, none of them empty")
    return sampling(**{**present, "stop": tuple(given.stop)})


def _bad(name: str, rule: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FIELD", f"parameters.{name}: must be {rule}", field=f"parameters.{name}")


def _served(serving: Serving) -> pb.Served:
    return pb.Served(
        backend_id=serving.backend_id,
        backend_kind=serving.backend_kind,
        composition=serving.plan.composition,
        adapters=[
            WeightedAdapter(adapter_id=a.adapter_id, version=a.version, weight=a.weight, digest=a.digest)
            for a in serving.plan.adapters
        ],
        degraded_reason=serving.plan.degraded_reason,
        served_name=serving.plan.served_name,
        replica=serving.shown_replica,
    )


def _usage(answer: Answer) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=answer.usage.prompt_tokens, completion_tokens=answer.usage.completion_tokens
    )
