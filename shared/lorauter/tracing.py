"""Traces: off unless a receiver of OpenTelemetry's is named, and free then.

Everything that makes spans calls this and nothing of OpenTelemetry's, which is imported only when traces are
on. Prompts and answers are put into no span unless may_show_prompts() says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Protocol, Self

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]
Carrier = Mapping[str, str]
"""A place in a trace as W3C Trace Context writes it: ``traceparent`` and, if there is one, ``tracestate``."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of OpenTelemetry's that name the receiver; the first that is set counts."""

NOWHERE: Carrier = {}


class Span:
    """A part of a trace: a context manager, or ended by hand. This one is not recorded."""

    __slots__ = ()

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def fail(self, error: str) -> None:
        """Says that it failed, and of what: a reason or the name of an exception, never a message."""

    def rename(self, name: str) -> None:
        """Gives it the name that is known only now."""

    def end(self) -> None:
        """Ends it; what comes later changes nothing."""

    def within(self) -> AbstractContextManager[Any]:
        """Makes it the current one until the block ends, and does not end it."""
        return self

    def __enter__(self) -> Self:
        """Makes it the current one until the block ends, which ends it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it, as failed if the block raised."""


OFF = Span()
"""What span() returns while traces are off."""


class Recorder(Protocol):
    """What makes spans while traces are on."""

    def start(
        self, name: str, kind: Kind, attributes: Attributes | None, parent: Carrier, links: Sequence[Carrier]
    ) -> Span:
        """See span()."""
        ...

    def current(self) -> Span:
        """See current()."""
        ...

    def outside(self) -> AbstractContextManager[Any]:
        """See outside()."""
        ...

    def carrier(self) -> dict[str, str]:
        """See carrier()."""
        ...

    def ids(self) -> tuple[str, str] | None:
        """See ids()."""
        ...

    def close(self) -> None:
        """See close()."""
        ...


_recorder: Recorder | None = None
_shows_prompts = False


def configure(service: str, shows_prompts: bool = False) -> None:
    """Turns traces on for this process if the environment names a receiver, else leaves them off.

    ``shows_prompts``: whether spans may hold what callers and models wrote. To be called once in a process
    that makes spans, after any fork. Raises ImportError where OpenTelemetry is not installed.
    """
    global _recorder, _shows_prompts
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from lorauter.tracing_otel import OtlpRecorder

    _shows_prompts = shows_prompts
    _recorder = OtlpRecorder(service)


def close() -> None:
    """Sends what waits, for a moment at most, and turns traces off."""
    global _recorder, _shows_prompts
    recorder, _recorder, _shows_prompts = _recorder, None, False
    if recorder is not None:
        recorder.close()


def is_on() -> bool:
    """Whether spans are recorded: for what would be put together for them alone."""
    return _recorder is not None


def may_show_prompts() -> bool:
    """Whether spans may hold what callers and models wrote."""
    return _shows_prompts


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    parent: Carrier = NOWHERE,
    links: Sequence[Carrier] = (),
) -> Span:
    """Returns a started span under ``parent``, or under the current one where that is empty.

    Outside of any trace only servers and consumers begin one; other spans are not recorded there.
    ``links``: other traces that it is about, too. What cannot be read of a carrier counts as empty.
    """
    return OFF if _recorder is None else _recorder.start(name, kind, attributes, parent, links)


def current() -> Span:
    """Returns the span that the running code is in, to add to it; not to be ended."""
    return OFF if _recorder is None else _recorder.current()


def outside() -> AbstractContextManager[Any]:
    """Makes no span current until the block ends: for starting what goes on beside, in nobody's trace."""
    return OFF if _recorder is None else _recorder.outside()


def carrier() -> dict[str, str]:
    """Returns the current place for whoever is called; empty while traces are off."""
    return {} if _recorder is None else _recorder.carrier()


def traceparent() -> str:
    """Returns the current place as one text that can be stored; empty while traces are off."""
    return carrier().get("traceparent", "")


def ids() -> tuple[str, str] | None:
    """Returns the current trace's and span's ids in hexadecimal; None outside of any."""
    return None if _recorder is None else _recorder.ids()


def stored(traceparent: str) -> Carrier:
    """Returns the carrier of a stored place."""
    return {"traceparent": traceparent} if traceparent else NOWHERE
