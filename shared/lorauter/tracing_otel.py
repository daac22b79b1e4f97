"""Spans by OpenTelemetry's SDK, sent to a receiver as OTLP over HTTP.

Endpoint, headers, sampler, queue and delays are OpenTelemetry's own variables (``OTEL_*``), which the SDK
reads. The provider is not made the process's global one: what libraries would record, prompts included, is
nobody's.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Token
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lorauter.tracing import NOWHERE, OFF, Attributes, Carrier, Kind, Span

_CLOSE_SECONDS = 2.0
"""How long a process that ends waits for its last spans to be taken."""

_log = logging.getLogger("opentelemetry")

_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_BEGINS = ("server", "consumer")
"""Kinds of spans that begin a trace where there is none; what goes on beside requests makes no traces."""

_NO_FAILURE = (GeneratorExit, StopIteration, StopAsyncIteration)
_ROOT = Context()


class OtlpRecorder:
    """A Recorder. Spans wait in a bounded queue for a thread that sends them; those over it are dropped."""

    def __init__(self, service: str) -> None:
        resource = Resource.create(
            {"service.name": f"lorauter-{service}", "service.version": version("lorauter")}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lorauter")
        self._w3c = TraceContextTextMapPropagator()
        # else every try to reach a receiver that is away would be a line
        _log.setLevel(logging.ERROR)
        atexit.register(self.close)

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes | None,
        parent: Carrier = NOWHERE,
        links: Sequence[Carrier] = (),
    ) -> Span:
        """See tracing.span()."""
        if not parent and kind not in _BEGINS and self.ids() is None:
            return OFF
        context = self._w3c.extract(parent, _ROOT) if parent else None
        started = self._tracer.start_span(
            name, context, _KINDS[kind], attributes, [self._link(link) for link in links]
        )
        return _Recorded(started)

    def current(self) -> Span:
        """See tracing.current()."""
        found = trace.get_current_span()
        return _Recorded(found) if found.is_recording() else OFF

    def outside(self) -> AbstractContextManager[Any]:
        """See tracing.outside()."""
        return trace.use_span(trace.INVALID_SPAN)

    def carrier(self) -> dict[str, str]:
        """See tracing.carrier()."""
        found: dict[str, str] = {}
        self._w3c.inject(found)
        return found

    def ids(self) -> tuple[str, str] | None:
        """See tracing.ids()."""
        found = trace.get_current_span().get_span_context()
        return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None

    def close(self) -> None:
        """See tracing.close()."""
        atexit.unregister(self.close)
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        _log.setLevel(logging.CRITICAL)  # what is still being tried is given up

    def _link(self, to: Carrier) -> trace.Link:
        return trace.Link(trace.get_current_span(self._w3c.extract(to, _ROOT)).get_span_context())


class _Recorded(Span):
    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error: str) -> None:
        self._span.set_attribute("error.type", error)
        self._span.set_status(StatusCode.ERROR)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()

    def within(self) -> AbstractContextManager[Any]:
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def __enter__(self) -> Self:
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        if error is not None and not isinstance(error, _NO_FAILURE):
            self.fail(getattr(error, "reason", "") or type(error).__name__)
        self.end()
