"""Work that changes owe is in their traces, and metrics tell how far it is."""

from dataclasses import replace

import pytest

from benchmarks.traces_receiver import TraceReceiver
from lorauter import tracing
from lorauter.index import QdrantIndex
from lorauter_worker import telemetry
from lorauter_worker.service.gauges import Gauges


@pytest.fixture
def receiver(monkeypatch):
    with TraceReceiver() as listening:
        for name, value in listening.environment.items():
            monkeypatch.setenv(name, value)
        tracing.configure("worker")
        yield listening
        tracing.close()


def changed(registry, name):
    """Registers a task inside a caller's span; returns the trace."""
    with tracing.span(name, "server"):
        registry.put_task(name, registry.questions(name))
        return tracing.ids()[0]


def named(spans, name):
    return [span for span in spans if span.name == name]


def test_work_of_many_changes_is_done_in_the_oldest_trace_and_linked_from_the_others(
    registry, index_worker, receiver
):
    registry.add_pool()
    first, second = changed(registry, "sorting"), changed(registry, "counting")
    index_worker.indexer.drain()
    spans = receiver.until(lambda found: len(named(found, "index")) == 2)
    by_trace = {span.trace: span for span in named(spans, "index")}
    assert by_trace.keys() == {first, second}
    assert by_trace[first].links == (second,)
    assert by_trace[second].links == (first,)
    assert by_trace[first].attributes["lorauter.changes"] == 3
    (published,) = named(spans, "publish")
    assert (published.trace, published.parent) == (first, by_trace[first].id)
    committed = {span.trace: span.id for span in named(spans, "transaction")}
    assert {trace: span.parent for trace, span in by_trace.items()} == committed


def test_marker_says_in_which_trace_it_was_moved(registry, index_worker, receiver):
    registry.add_pool()
    trace = changed(registry, "sorting")
    index_worker.indexer.drain()
    assert index_worker.index.carrier(registry.tenant)["traceparent"].split("-")[1] == trace
    assert index_worker.snapshot().generation == registry.scalar("SELECT published FROM generation")


def test_matching_that_a_change_begins_is_in_its_trace(registry, index_worker, receiver):
    registry.add_pool()
    registry.add_backend("http://127.0.0.1:1")
    registry.add_version("sorter", "sha256:" + "1" * 64)
    trace = changed(registry, "sorting")
    index_worker.indexer.drain()
    (row,) = registry.outbox()
    assert (row.topic, row.traceparent.split("-")[1]) == ("matching", trace)


def test_work_that_fails_says_why_in_its_span(registry, index_worker, receiver):
    registry.add_pool()
    trace = changed(registry, "sorting")
    away = QdrantIndex("http://127.0.0.1:1", 1.0)
    replace(index_worker.indexer, index=away).drain()
    away.close()
    spans = receiver.until(lambda found: bool(named(found, "index")), trace)
    (work,) = named(spans, "index")
    assert (work.failed, work.attributes["error.type"]) == (True, "INDEX_UNAVAILABLE")


def test_changes_of_nobodys_trace_begin_none(registry, index_worker, receiver):
    registry.add_pool()
    registry.put_task("sorting", registry.questions("sorting"))
    assert {row.traceparent for row in registry.outbox()} == {""}
    index_worker.indexer.drain()
    changed(registry, "counting")
    assert {span.trace for span in receiver.until(bool)} == {span.trace for span in receiver.spans()[:1]}
    assert named(receiver.spans(), "index") == []


def test_gauges_tell_how_far_everything_is(registry, index_worker):
    registry.add_pool()
    newest = registry.put_task("sorting", registry.questions("sorting"))
    gauges = Gauges(registry.engine)
    gauges.once()
    of_tenant = {"tenant": registry.tenant}
    assert telemetry.ACCEPTED.labels(**of_tenant)._value.get() == newest
    assert telemetry.PUBLISHED.labels(**of_tenant)._value.get() == 0
    assert telemetry.TASKS.labels(state="REGISTERED")._value.get() == 1
    index_worker.indexer.drain()
    Gauges(registry.engine).once()
    assert telemetry.PUBLISHED.labels(**of_tenant)._value.get() == newest
    assert telemetry.TASKS.labels(state="REGISTERED")._value.get() == 0
    assert telemetry.TASKS.labels(state="EMBEDDED")._value.get() == 1
