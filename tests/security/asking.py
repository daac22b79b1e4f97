"""Calls of one tenant that try to reach another's things, and what came of them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from string import Template
from typing import Any

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from lorauter.client.status import to_error
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2
from lorauter.router.v1 import router_pb2
from tests.security.tenancy import Names, Stage

Fields = Mapping[str, Any]

METHODS: dict[str, tuple[str, MethodDescriptor]] = {
    method.name: (service, method)
    for service, module, name in (
        ("registry", registry_pb2, "RegistryService"),
        ("router", router_pb2, "RouterService"),
        ("gateway", gateway_pb2, "GatewayService"),
    )
    for method in module.DESCRIPTOR.services_by_name[name].methods
}
"""Every RPC by its name, with the service that has it."""

_VOLATILE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"  # ids of operations
    r"|lra_\w{16}_[\w-]{43}|\b[0-9a-f]{16}\b|\b[0-9a-f]{32}\b"  # keys, their ids, those of decisions
    r"|\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)?|g[0-9a-f]{16}|\b\d+-[0-9a-f]{10,}\b"  # times, generations, etags
    r"|[\d.]+(e-\d+)? ?s\b|\b\d+\.\d+\b"
    r'|"timings": ?\{[^}]*\}'
)


@dataclass(frozen=True)
class Outcome:
    """What a call came to: ``reason`` is `OK` or why it was refused, ``said`` all that its caller reads."""

    reason: str
    said: str
    status: int = 0
    """HTTP's."""

    def as_of(self, names: Names, others: Names) -> tuple[str, str]:
        """Returns it as if ``names`` were ``others``, without what differs from call to call."""
        said = self.said
        for own, other in zip(asdict(names).values(), asdict(others).values(), strict=True):
            said = said.replace(own, other) if own else said
        return self.reason, _VOLATILE.sub("…", said)


def filled(template: object, names: Names) -> Any:
    """Returns a template with names for its $words."""
    return json.loads(Template(json.dumps(template)).substitute(asdict(names)))


async def call(stage: Stage, rpc: str, fields: Fields, key: str, **metadata: str) -> Outcome:
    """Makes a gRPC call with a key; an empty one is not sent."""
    service, method = METHODS[rpc]
    asked = GetMessageClass(method.input_type)
    plain = {name: value for name, value in fields.items() if name != "pieces"}
    pieces = fields["pieces"] if method.client_streaming else [plain]
    requests = [json_format.ParseDict(piece, asked()) for piece in pieces]
    streams = (method.client_streaming, method.server_streaming)
    kind = "_".join("stream" if one else "unary" for one in streams)
    path = f"/{method.containing_service.full_name}/{rpc}"
    answer = GetMessageClass(method.output_type)
    made = getattr(stage.channels[service], kind)(path, asked.SerializeToString, answer.FromString)
    sent = [("authorization", f"Bearer {key}")] if key else []
    sent += [(name.replace("_", "-"), value) for name, value in metadata.items()]
    running = made(_each(requests) if method.client_streaming else requests[0], timeout=20, metadata=sent)
    try:
        if method.server_streaming:
            answers = []
            async for message in running:
                answers.append(message)
                if rpc == "WatchOperation":
                    break
            running.cancel()
        else:
            answers = [await running]
    except grpc.aio.AioRpcError as failure:
        error = to_error(failure)
        said = json.dumps([error.message, error.metadata, repr(failure.trailing_metadata())])
        return Outcome(error.reason, said)
    return Outcome("OK", "\n".join(map(_text, answers)))


def _text(message: Any) -> str:
    data = getattr(message, "data", b"")
    return json_format.MessageToJson(message) + data.decode("utf-8", "replace")


async def _each(requests: list[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def ask(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    key: str,
    body: object = None,
    query: Fields | None = None,
    **headers: str,
) -> Outcome:
    """Makes an HTTP request with a key; an empty one is not sent. A body of text is sent as it is."""
    sent = {"authorization": f"Bearer {key}"} if key else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = {"content": body} if isinstance(body, str) else {"json": body}
    async with http.stream(method, path, params=query, headers=sent, **content) as answer:
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            if path.endswith("/events"):
                break
    own = {name: value for name, value in answer.headers.items() if name.startswith("x-lorauter")}
    return Outcome(_reason(answer.status_code, text), text + json.dumps(own), answer.status_code)


def _reason(status: int, text: str) -> str:
    if status < 400:
        return "OK"
    found = re.search(r'"(?:reason|code|error_type)": ?"(\w+)"', text)
    return found[1] if found else str(status)
