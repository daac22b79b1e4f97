"""Draws the trace of one registration and of one generation through a whole suite.

`python -m benchmarks.traces --out FOLDER` starts the embedded suite with a receiver of OTLP beside it, acts
as a caller that keeps traces of its own, and draws what comes: trace-registration.svg, trace-generation.svg.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx

from benchmarks.traces_figure import draw
from benchmarks.traces_receiver import ReceivedSpan, TraceReceiver
from lorauter_suite.seeding import VALIDATION_EXAMPLES, DemoTask, demo_tasks, seed
from lorauter_suite.suite import Addresses, Suite, SuiteOptions
from lorauter_suite.walkthrough import follow_matching

GENERATION = (
    *(("gateway", "POST /v1/completions"), ("gateway", "lorauter.router.v1.RouterService/Route")),
    *(("router", "lorauter.router.v1.RouterService/Route"), ("router", "encode"), ("router", "decide")),
    *(("gateway", "prepare"), ("gateway", "text_completion"), ("engine", "POST /generate")),
)
"""The services and names, or how they begin, of the spans that a whole trace of a generation has."""

REGISTRATION = (
    *(("registry", "PUT /v1/tasks/"), ("registry", "transaction"), ("worker", "index"), ("worker", "read")),
    *(("worker", "encode"), ("worker", "fit"), ("worker", "publish"), ("worker", "upsert ")),
    *(("worker", "move marker"), ("worker", "record")),
    *(("router", "swap"), ("router", "read"), ("router", "compile")),
)
"""The same of a validation set that is registered."""

Whole = Iterable[tuple[str, str]]


def main() -> int:
    """Runs the suite and writes both pictures."""
    parser = argparse.ArgumentParser(prog="make traces", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="lorauter-traces-") as data,
        TraceReceiver() as receiver,
        Suite(Path(data), SuiteOptions(environment=receiver.environment)) as suite,
    ):
        say("the suite is up; registering and matching the demo pool")
        prepared(suite.addresses)
        task = next(demo_tasks())
        registered = registration(suite.addresses, receiver, task)
        answered = generation(suite.addresses, receiver, task)
    draw(
        registered,
        f"{task.id}: a validation set is registered, published and served",
        folder / "trace-registration.svg",
    )
    draw(answered, "a text is completed", folder / "trace-generation.svg")
    for name, spans in (("registration", registered), ("generation", answered)):
        took = (max(span.end for span in spans) - min(span.begin for span in spans)) / 1e6
        say(
            f"{name}: {len(spans)} spans of {len({span.service for span in spans})} services in {took:.0f} ms"
        )
    return 0


def prepared(addresses: Addresses) -> None:
    """Registers the demo pool and returns once it is matched."""
    with addresses.client() as client:
        seed(client, addresses.engine_http, lambda _: None)
        for _ in follow_matching(client):
            pass


def begun() -> tuple[str, dict[str, str]]:
    """Returns the id of a new trace, and the headers of a caller who is in it."""
    trace = secrets.token_hex(16)
    return trace, {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}


def is_whole(spans: Sequence[ReceivedSpan], whole: Whole) -> bool:
    """Whether every span of ``whole`` is there."""
    return all(
        any(s.service == service and s.name.startswith(name) for s in spans) for service, name in whole
    )


def generation(addresses: Addresses, receiver: TraceReceiver, task: DemoTask) -> list[ReceivedSpan]:
    """Has a text completed, and returns the trace of it."""
    trace, place = begun()
    body = {"model": "auto", "prompt": task.examples("test")[0]["input"], "max_tokens": task.max_new_tokens}
    answer = httpx.post(
        f"{addresses.gateway_http}/v1/completions",
        json=body,
        headers={**addresses.headers, **place},
        timeout=60,
    )
    answer.raise_for_status()
    return receiver.until(lambda spans: is_whole(spans, GENERATION), trace)


def registration(addresses: Addresses, receiver: TraceReceiver, task: DemoTask) -> list[ReceivedSpan]:
    """Replaces a task's validation set by other examples, and returns the trace of it."""
    settle(addresses)
    trace, place = begun()
    examples = task.examples("test")[:VALIDATION_EXAMPLES]
    answer = httpx.put(
        f"{addresses.registry_http}/v1/tasks/{task.id}/validation-set",
        content="\n".join(json.dumps(example) for example in examples),
        headers={"content-type": "application/x-ndjson", **addresses.headers, **place},
        timeout=60,
    )
    answer.raise_for_status()
    found = receiver.until(lambda spans: is_whole(spans, REGISTRATION), trace, seconds=60)
    return [span for span in found if span.name != "match"]


def settle(addresses: Addresses, seconds: float = 60.0) -> None:
    """Waits until no change is owed: work for several changes stands in the trace of the oldest of them."""
    deadline = time.monotonic() + seconds
    with addresses.client() as client:
        while (now := client.registry.get_generation()).generation != now.published_generation:
            if time.monotonic() > deadline:
                raise TimeoutError(f"generation {now.generation} is not published after {seconds:g} s")
            time.sleep(0.1)


def say(line: str) -> None:
    """Prints progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
