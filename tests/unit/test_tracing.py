"""Traces cost nothing while they are off; while they are on they say what happened, not what was written."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from benchmarks.traces_receiver import TraceReceiver
from lorauter import tracing
from lorauter.errors import Unavailable
from lorauter.settings import ServiceSettings
from lorauter.telemetry import configure_logging, get_logger

PLACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The example of W3C Trace Context."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[TraceReceiver]:
    """A receiver that this process sends its spans to."""
    with TraceReceiver() as listening:
        for name, value in listening.environment.items():
            monkeypatch.setenv(name, value)
        tracing.configure("test")
        try:
            yield listening
        finally:
            tracing.close()


def test_nothing_is_made_and_nothing_imported_while_traces_are_off() -> None:
    program = (
        "import sys; from lorauter import tracing; tracing.configure('test');"
        "assert tracing.span('one') is tracing.OFF and tracing.current() is tracing.OFF;"
        "assert tracing.carrier() == {} and tracing.ids() is None and not tracing.is_on();"
        "import lorauter.server.run, lorauter.server.grpc;"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={})
    assert done.stdout.strip() == "[]", done.stderr


def test_sdk_that_is_disabled_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.configure("test")
    assert not tracing.is_on()


def test_setting_is_an_address_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert ServiceSettings().otlp_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert str(ServiceSettings().otlp_endpoint) == "http://collector:4318/"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
    with pytest.raises(ValidationError):
        ServiceSettings()


def test_spans_go_on_with_the_callers_trace(receiver: TraceReceiver) -> None:
    with tracing.span("served", "server", parent=tracing.stored(PLACE)), tracing.span("done") as inner:
        inner.set({"lorauter.pool": "demo"})
        carried = tracing.carrier()["traceparent"]
    outer, done = receiver.until(lambda spans: len(spans) == 2, trace=PLACE.split("-")[1])
    assert (outer.name, outer.kind, outer.parent) == ("served", "server", PLACE.split("-")[2])
    assert (done.name, done.kind, done.parent) == ("done", "internal", outer.id)
    assert done.attributes["lorauter.pool"] == "demo"
    assert carried.split("-")[1:3] == [done.trace, done.id]
    assert {outer.service, done.service} == {"test"}


def test_span_made_current_for_a_while_is_the_parent_and_goes_on(receiver: TraceReceiver) -> None:
    with tracing.span("served", "server"):
        asked = tracing.span("asked", "client")
        with asked.within(), tracing.span("below"):
            pass
        with tracing.span("beside"):
            pass
        asked.end()
    spans = {span.name: span for span in receiver.until(lambda spans: len(spans) == 4)}
    assert spans["below"].parent == spans["asked"].id
    assert spans["beside"].parent == spans["asked"].parent == spans["served"].id
    assert spans["asked"].end > spans["beside"].end


def test_failure_is_told_by_its_reason_and_never_by_its_message(receiver: TraceReceiver) -> None:
    with pytest.raises(Unavailable), tracing.span("served", "server"):
        raise Unavailable("BACKEND_AWAY", "the words of somebody")
    (span,) = receiver.until(lambda spans: len(spans) == 1)
    assert span.failed
    assert span.attributes == {"error.type": "BACKEND_AWAY"}
    assert "somebody" not in repr(span)


def test_what_runs_beside_requests_begins_no_trace(receiver: TraceReceiver) -> None:
    with tracing.span("polled", "client") as span:
        assert span is tracing.OFF
    with tracing.span("work", "consumer"):
        pass
    assert [span.name for span in receiver.until(bool)] == ["work"]


@pytest.mark.parametrize("place", ["", "nonsense", "00-0-0-01", f"{PLACE}-\x00"])
def test_place_that_cannot_be_read_begins_a_trace_anew(receiver: TraceReceiver, place: str) -> None:
    with tracing.span("served", "server", parent=tracing.stored(place)):
        assert tracing.ids() is not None
    (span,) = receiver.until(lambda spans: len(spans) == 1)
    assert span.parent == ""


def test_caller_who_keeps_no_trace_is_believed(receiver: TraceReceiver) -> None:
    with tracing.span("unsampled", "server", parent=tracing.stored(f"{PLACE[:-2]}00")):
        assert tracing.carrier()["traceparent"].endswith("-00")
    with tracing.span("sampled", "server"):
        pass
    assert [span.name for span in receiver.until(bool)] == ["sampled"]


async def test_tasks_at_once_keep_their_traces_apart(receiver: TraceReceiver) -> None:
    async def answer(name: str) -> None:
        with tracing.span(name, "server"):
            await asyncio.sleep(0)
            with tracing.span(f"{name}-inner"):
                await asyncio.sleep(0)

    await asyncio.gather(*(answer(f"call-{number}") for number in range(8)))
    spans = receiver.until(lambda spans: len(spans) == 16)
    for span in spans:
        if span.name.endswith("-inner"):
            parent = next(other for other in spans if other.id == span.parent)
            assert (parent.name, parent.trace) == (span.name.removesuffix("-inner"), span.trace)


def test_log_lines_name_trace_and_span(receiver: TraceReceiver, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("test")
    with tracing.span("served", "server"):
        trace, span = tracing.ids() or ("", "")
        get_logger("test").info("inside")
    get_logger("test").info("outside")
    inside, outside = map(json.loads, capsys.readouterr().err.splitlines()[-2:])
    assert (inside["trace_id"], inside["span_id"]) == (trace, span)
    assert "trace_id" not in outside


def test_receiver_that_is_away_holds_up_neither_spans_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    tracing.configure("test")
    for _ in range(500):
        with tracing.span("served", "server"):
            pass
    tracing.close()  # else this test's time is up
    assert tracing.span("served", "server") is tracing.OFF
