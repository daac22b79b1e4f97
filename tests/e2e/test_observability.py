"""What a whole suite shows of itself: traces from end to end, the metrics that are documented, no prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from benchmarks import traces
from benchmarks.dashboards_promql import metrics_in
from benchmarks.dashboards_rules import rules
from benchmarks.traces_receiver import ReceivedSpan
from lorauter import Client
from lorauter.errors import LorauterError
from lorauter_suite.seeding import POOL_ID, demo_tasks
from lorauter_suite.suite import Addresses
from tests.e2e.conftest import Observed
from tests.unit.test_observability_files import documented, queries, series_of

MARKER = "zanzibarquartz"
"""A word that nothing but a caller's prompt holds."""


def one(spans: list[ReceivedSpan], service: str, name: str, kind: str = "") -> ReceivedSpan:
    """Returns the only span of a service whose name begins so."""
    found = [s for s in spans if s.service == service and s.name.startswith(name) and kind in ("", s.kind)]
    assert len(found) == 1, [(span.service, span.name) for span in spans]
    return found[0]


def assert_hangs_together(spans: list[ReceivedSpan], root: ReceivedSpan) -> None:
    """Every span is below the root, and the root is below the caller's own span."""
    assert len({span.trace for span in spans}) == 1
    assert len({span.id for span in spans}) == len(spans)
    assert [span for span in spans if span.parent not in {other.id for other in spans}] == [root]
    assert root.parent
    assert not any(span.failed for span in spans)


def test_generation_is_one_trace_from_the_caller_to_the_backend(
    addresses: Addresses, embedded: Observed
) -> None:
    task = next(demo_tasks())
    spans = traces.generation(addresses, embedded.receiver, task)
    asked = one(spans, "gateway", "POST /v1/completions")
    assert_hangs_together(spans, asked)
    assert (asked.kind, asked.attributes["http.response.status_code"]) == ("server", 200)
    calling, called = (one(spans, name, "lorauter.router") for name in ("gateway", "router"))
    assert (calling.kind, calling.parent, called.kind, called.parent) == (
        *("client", asked.id),
        *("server", calling.id),
    )
    assert called.attributes["rpc.response.status_code"] == "OK"
    decided = one(spans, "router", "decide")
    assert {decided.parent, one(spans, "router", "encode").parent} == {called.id}
    assert decided.attributes["lorauter.decision"] == asked.attributes["lorauter.decision"]
    answering = one(spans, "gateway", "text_completion ")
    served = one(spans, "engine", "POST /generate")
    assert (answering.kind, answering.parent, served.parent) == ("client", asked.id, answering.id)
    said = answering.attributes
    assert (said["gen_ai.operation.name"], said["gen_ai.provider.name"]) == ("text_completion", "engine")
    assert answering.name == f"text_completion {said['gen_ai.request.model']}"
    assert said["gen_ai.request.max_tokens"] == task.max_new_tokens
    assert min(said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) > 0
    assert said["gen_ai.response.finish_reasons"] in (["stop"], ["length"])
    assert f"{said['server.address']}:{said['server.port']}" in addresses.engine_http


def test_registration_is_one_trace_from_the_caller_to_the_swap(
    addresses: Addresses, embedded: Observed
) -> None:
    spans = traces.registration(addresses, embedded.receiver, list(demo_tasks())[-1])
    put = one(spans, "registry", "PUT /v1/tasks/{")
    assert_hangs_together(spans, put)
    committed = one(spans, "registry", "transaction")
    work = one(spans, "worker", "index")
    assert (committed.parent, work.kind, work.parent) == (put.id, "consumer", committed.id)
    published = one(spans, "worker", "publish")
    assert {one(spans, "worker", name).parent for name in ("read", "encode", "fit", "record")} == {work.id}
    assert published.parent == work.id
    moved = one(spans, "worker", "move marker")
    upserts = [span for span in spans if span.name.startswith("upsert")]
    assert {moved.parent, *(span.parent for span in upserts)} == {published.id}
    assert {span.attributes["db.system.name"] for span in upserts} == {"qdrant"}
    swap = one(spans, "router", "swap")
    assert swap.parent in {published.id, moved.id}
    assert {one(spans, "router", name).parent for name in ("read", "compile")} == {swap.id}
    assert swap.begin >= moved.begin


def pages(addresses: Addresses, embedded: Observed) -> Iterator[str]:
    """Yields what every service shows at /metrics."""
    ports = json.loads((embedded.folder / "ports.json").read_text(encoding="utf-8"))
    workers = [f"http://127.0.0.1:{ports[name]}" for name in ("worker-index", "worker-matching")]
    services = (addresses.registry_http, addresses.router_http, addresses.gateway_http, addresses.engine_http)
    for url in (*services, *workers):
        answer = httpx.get(f"{url}/metrics", timeout=30)
        answer.raise_for_status()
        yield answer.text


def exported(addresses: Addresses, embedded: Observed) -> dict[str, str]:
    """Returns the metrics of all services by name, with their kinds."""
    shown = [
        found
        for page in pages(addresses, embedded)
        for found in re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE)
    ]
    return {
        name: kind for name, kind in shown if name.startswith("lorauter") and not name.endswith("_created")
    }


def test_services_export_what_is_documented_and_nothing_else(
    addresses: Addresses, embedded: Observed
) -> None:
    assert exported(addresses, embedded) == documented()


def test_queries_of_dashboards_and_alerts_read_what_services_export(
    addresses: Addresses, embedded: Observed
) -> None:
    known = {name for name, kind in exported(addresses, embedded).items() for name in series_of(name, kind)}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    read = {name for text in queries().values() for name in metrics_in(text)}
    assert {name for name in read - known if name.startswith("lorauter")} == set()


def test_prompts_are_in_no_log_no_span_and_no_metric(
    addresses: Addresses, embedded: Observed, client: Client
) -> None:
    trace, place = traces.begun()
    text = f"Please count the letters of the word {MARKER}"
    headers = {**addresses.headers, **place}
    decisions = list(asked_everywhere(addresses, text, headers))
    decisions.append(client.generate(text, pool=POOL_ID).decision.decision_id)
    decisions += [
        piece.decision.decision_id
        for piece in client.generate_stream(text, pool=POOL_ID)
        if piece.HasField("decision")
    ]
    for broken in ({"pool": MARKER}, {"adapter": MARKER}, {"max_new_tokens": 10**8, "pool": POOL_ID}):
        with pytest.raises(LorauterError):
            client.generate(text, **broken)
    assert len(decisions) >= 6
    spans = embedded.receiver.until(
        lambda found: sum(span.name.startswith(("text_completion", "chat")) for span in found) >= 4, trace
    )
    logs = "".join(path.read_text(errors="replace") for path in (embedded.folder / "logs").iterdir())
    shown = repr(spans) + "".join(pages(addresses, embedded))
    assert MARKER not in logs
    assert MARKER not in shown
    # and all that is looked through holds what it should
    lines = [json.loads(line) for line in logs.splitlines() if '"gateway.generation.ended"' in line]
    assert set(decisions) <= {line.get("decision") for line in lines}
    assert trace in {line.get("trace_id") for line in lines}
    assert decisions[0] in shown
    assert trace in shown


def asked_everywhere(addresses: Addresses, text: str, headers: dict[str, str]) -> Iterator[str]:
    """Sends a text to every HTTP route that takes one; yields the decisions of generations."""
    turns = [{"role": "user", "content": text}]
    bodies = (
        ("/v1/completions", {"model": "auto", "prompt": text, "max_tokens": 4}),
        ("/v1/completions", {"model": "auto", "prompt": text, "max_tokens": 4, "stream": True}),
        ("/generate", {"inputs": text, "parameters": {"max_new_tokens": 4}}),
        ("/generate_stream", {"inputs": text, "parameters": {"max_new_tokens": 4}}),
        ("/v1/route", {"query": text}),
        ("/v1/chat/completions", {"model": "auto", "messages": turns, "max_tokens": 4}),
        ("/v1/completions", {"model": "auto", "prompt": text, "max_tokens": MARKER}),
        ("/generate", {"inputs": text, "parameters": {"adapter_id": MARKER}}),
    )
    for path, body in bodies:
        answer = httpx.post(addresses.gateway_http + path, json=body, headers=headers, timeout=60)
        if answer.is_success and path != "/v1/route":
            yield answer.headers["x-lorauter-decision"]
