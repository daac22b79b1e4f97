"""Proves that every panel and every alert reads something: a loaded suite, scraped by a real Prometheus.

`python -m benchmarks.dashboards --out FOLDER` needs `prometheus` on PATH. It starts the embedded suite, asks
it for a while, evaluates every query of the dashboards and every rule, and fails if a panel has no series or
a rule an error. It draws a page for each dashboard: dashboard-health.svg, -quality.svg and -backends.svg.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.dashboards_backends import DASHBOARDS
from benchmarks.dashboards_figure import draw
from benchmarks.dashboards_panels import Dashboard
from benchmarks.dashboards_prometheus import Prometheus, Series, running
from benchmarks.dashboards_rules import RULES, TESTS
from lorauter import Client
from lorauter.errors import LorauterError, Unauthenticated
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_ID, VALIDATION_EXAMPLES, DemoTask, demo_tasks, seed
from lorauter_suite.suite import Suite
from lorauter_suite.walkthrough import Query, follow_matching, sample_queries

CALLERS = 3
CHANGE_SECONDS = 12.0
"""How often a validation set is replaced meanwhile."""

LOAD_SECONDS = 120.0
UNTYPICAL = ("Wie spät ist es in Lissabon?", "SELECT count(*) FROM rows WHERE id < 7;", "∑ 1/n² = π²/6 ?")


def main() -> int:
    """Runs it; returns 1 where something has no series or an error."""
    parser = argparse.ArgumentParser(prog="make dashboards", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--seconds", type=float, default=LOAD_SECONDS, help="how long the suite is asked")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if shutil.which("prometheus") is None:
        say("make dashboards: there is no prometheus on PATH; on Debian and Ubuntu: apt install prometheus")
        return 2
    problems = promtool()
    with tempfile.TemporaryDirectory(prefix="lorauter-dashboards-") as folder:
        data = Path(folder)
        with Suite(data / "suite") as suite:
            say("the suite is up; Prometheus begins to scrape it")
            with running(data / "prometheus", data / "suite" / "ports.json") as prometheus:
                load(suite, options.seconds)
                problems += evaluate(prometheus, options.out)
    for problem in problems:
        say(problem)
    say("every panel has series, every rule is well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def promtool() -> list[str]:
    """Checks rules and their cases; returns what is wrong."""
    tool = shutil.which("promtool")
    if tool is None:
        return []
    problems = []
    for command in (["check", "rules", RULES.name], ["test", "rules", TESTS.name]):
        done = subprocess.run(  # noqa: S603 - of Prometheus, on files of ours
            [tool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        say(f"promtool {' '.join(command)}: {'ok' if done.returncode == 0 else 'FAILED'}")
        if done.returncode != 0:
            problems.append(done.stdout + done.stderr)
    return problems


def load(suite: Suite, seconds: float) -> None:
    """Registers the demo pool, and then asks and changes things for so long."""
    with suite.addresses.client() as client:
        seed(client, suite.addresses.engine_http, lambda _: None)
        for _ in follow_matching(client):
            pass
        say(f"the demo pool is matched; asking for {seconds:g} s")
        with _meanwhile(lambda: _change(client), CHANGE_SECONDS):
            _ask(client, seconds)
            _ask_without_key(suite.addresses.gateway_grpc)


def _ask_without_key(gateway: str) -> None:
    with Client(gateway=gateway, api_key="") as nobody, suppress(Unauthenticated):
        nobody.generate("Who am I?", pool=POOL_ID)


def _ask(client: Client, seconds: float) -> None:
    """Asks first what is like the validation sets, then in other words, and what no task stands for."""
    usual = [Query(task.id, text, "", task.max_new_tokens) for task in demo_tasks() for text in _left(task)]
    unusual = [
        replace(query, text=UNTYPICAL[place % len(UNTYPICAL)]) if place % 7 == 6 else query
        for place, query in enumerate(sample_queries(12))
    ]
    for queries in (usual, unusual):
        deadline = time.monotonic() + seconds / 2
        with ThreadPoolExecutor(CALLERS) as threads:
            for number in range(CALLERS):
                threads.submit(_call, client, queries[number::CALLERS], deadline)


def _left(task: DemoTask) -> list[str]:
    return [example["input"] for example in task.examples("validation")[VALIDATION_EXAMPLES:]]


def _call(client: Client, queries: list[Query], deadline: float) -> None:
    """Asks in turn until the time is up, some as streams, some of the bare base."""
    for place, query in enumerate(itertools.cycle(queries)):
        if time.monotonic() > deadline:
            return
        with suppress(LorauterError):
            if place % 5 == 4:
                list(client.generate_stream(query.text, pool=POOL_ID, max_new_tokens=query.max_new_tokens))
            else:
                is_base, most = place % 11 == 10, query.max_new_tokens
                client.generate(query.text, pool=POOL_ID, max_new_tokens=most, base=is_base)


def _change(client: Client) -> None:
    """Replaces the first task's validation set by other examples of it."""
    task = next(demo_tasks())
    examples = task.examples("test")
    begin = int(time.monotonic()) % max(1, len(examples) - VALIDATION_EXAMPLES)
    chosen = [pb.ValidationExample(**example) for example in examples[begin : begin + VALIDATION_EXAMPLES]]
    client.registry.put_validation_set(task.id, chosen)


@contextmanager
def _meanwhile(work: Callable[[], None], every_seconds: float) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_seconds):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def evaluate(prometheus: Prometheus, folder: Path) -> list[str]:
    """Draws every dashboard; returns the panels without series and the rules with errors."""
    prometheus.await_rules()
    problems = [f"rule {name}: {error}" for name, error in prometheus.broken_rules().items()]
    for dashboard in DASHBOARDS:
        found = dict(_series(prometheus, dashboard))
        problems += [
            f"{dashboard.title}: {where} has no series" for where, series in found.items() if not series
        ]
        draw(dashboard, found, folder / f"dashboard-{dashboard.uid.removeprefix('lorauter-')}.svg")
        say(f"{dashboard.title}: {len(found)} queries, {sum(map(len, found.values()))} series")
    firing = sorted(prometheus.firing())
    say(f"alerts that wait or fire: {', '.join(firing) or 'none'}")
    return problems


def _series(prometheus: Prometheus, dashboard: Dashboard) -> Iterator[tuple[str, list[Series]]]:
    for panels in dashboard.rows.values():
        for panel in panels:
            for expression, legend in panel.queries:
                yield f"{panel.title}/{legend}", prometheus.range(expression, legend)


def say(line: str) -> None:
    """Prints progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
