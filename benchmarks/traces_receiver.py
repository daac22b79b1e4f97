"""A receiver of OTLP over HTTP: what services send to a collector, read and kept by trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span; ids in hexadecimal, times in Unix nanoseconds. An empty ``parent`` is a trace's begin."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    begin: int
    end: int
    attributes: Mapping[str, Any]
    failed: bool
    links: tuple[str, ...]
    """The traces that it is about, too."""


class TraceReceiver:
    """Listens on loopback while it is entered."""

    def __init__(self) -> None:
        self._spans: list[ReceivedSpan] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Settings that have a service send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def spans(self, trace: str = "") -> list[ReceivedSpan]:
        """Returns what has come, of one trace or of all, by their begin."""
        return sorted((s for s in self._spans if not trace or s.trace == trace), key=lambda span: span.begin)

    def until(
        self, is_whole: Callable[[list[ReceivedSpan]], bool], trace: str = "", seconds: float = 20.0
    ) -> list[ReceivedSpan]:
        """Returns the spans once they are whole; raises TimeoutError with the names that came."""
        deadline = time.monotonic() + seconds
        while not is_whole(found := self.spans(trace)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"only these spans came: {sorted({span.name for span in found})}")
            time.sleep(_LOOK_SECONDS)
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        spans = self._spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                spans.extend(read(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

        return Handler


def read(request: ExportTraceServiceRequest) -> Iterable[ReceivedSpan]:
    """Yields the spans of a request."""
    for resource in request.resource_spans:
        service = str(attributes_of(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    service=service.removeprefix("lorauter-"),
                    begin=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=attributes_of(span.attributes),
                    failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    links=tuple(link.trace_id.hex() for link in span.links),
                )


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """Returns attributes as Python values."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
