"""`lorauter task`."""

from __future__ import annotations

import json
import ssl
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer
from google.protobuf.json_format import ParseDict

from lorauter import Client
from lorauter.errors import DeadlineExceeded, LorauterError, Unavailable
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.tls import Tls, client_context
from lorauter_suite.cli import evidence
from lorauter_suite.cli.context import (
    JsonFlag,
    PoolOption,
    connect,
    err,
    key_headers,
    out,
    print_fields,
    print_json,
    print_table,
    running,
    state_name,
    to_dict,
)

app = typer.Typer(help="Tasks: validation sets with a metric.", no_args_is_help=True)

TOP = 5
"""Adapters that `task show` names."""

PROGRESS = {
    pb.TASK_STATE_REGISTERED: 0,
    pb.TASK_STATE_EMBEDDED: 1,
    pb.TASK_STATE_MATCHING: 2,
    pb.TASK_STATE_MATCHED: 3,
}


class Wait(StrEnum):
    """What `task put --wait` waits for."""

    embedded = "embedded"
    matched = "matched"


@app.command("create")
def create(
    task: str,
    pool: Annotated[str, typer.Option(help="The pool it belongs to.")],
    metric: Annotated[str, typer.Option(help="How answers are scored.")] = "exact_match",
    description: str = "",
    system: Annotated[str, typer.Option(help="System text; makes prompts chat messages.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="The most new tokens.")] = 64,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A label that routing can filter by.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a task; `task put` then gives it its validation set."""
    prompt = pb.Prompt(format=pb.PROMPT_FORMAT_CHAT, system=system) if system else pb.Prompt()
    with connect() as client:
        created = client.registry.create_task(
            id=task,
            pool=pool,
            metric=metric,
            description=description,
            prompt=prompt,
            generation_settings=pb.GenerationSettings(max_new_tokens=max_new_tokens, stop=stop or []),
            tags=tag or [],
        )
    _show(created, as_json)


@app.command("put")
def put(
    task: str,
    file: Annotated[
        Path, typer.Argument(help='JSON lines: {"input": …, "target": …}.', exists=True, dir_okay=False)
    ],
    wait: Annotated[
        Wait | None, typer.Option(help="Wait until the router knows it, or it is measured.")
    ] = None,
    registry_url: Annotated[
        str, typer.Option(envvar="LORAUTER_REGISTRY_URL", help="The registry's HTTP address.")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 600.0,
    as_json: JsonFlag = False,
) -> None:
    """Replace a task's validation set as a whole, over REST."""
    url = registry_url or running().registry_http
    found = _upload(f"{url}/v1/tasks/{task}/validation-set", file)
    committed = time.monotonic()
    if not as_json:
        out.print(
            f"{task} version {found.version}: {found.example_count} examples, generation {found.generation}"
        )
    if wait is not None:
        with connect() as client:
            found = wait_for(client, task, wait, timeout)
        err.print(f"{task} {wait.value.upper()} {time.monotonic() - committed:.1f} s after its commit")
    if as_json:
        print_json(found)


def _upload(url: str, file: Path) -> pb.Task:
    headers = {"content-type": "application/jsonl", **key_headers()}
    try:
        with file.open("rb") as lines:
            answer = httpx.put(url, content=lines, headers=headers, timeout=120, verify=_trust())
    except httpx.TransportError as error:
        raise Unavailable("REGISTRY_UNREACHABLE", f"{url} does not answer: {error}") from None
    body = answer.json()
    if answer.is_error:
        raise LorauterError(body["reason"], body["detail"])
    return ParseDict(_with_enum_prefix(body), pb.Task(), ignore_unknown_fields=True)


def _trust() -> ssl.SSLContext:
    """Returns whom the command trusts over HTTPS: LORAUTER_TLS_CA's, else whom the system does."""
    return client_context(Tls.from_environment() or Tls(), trusts_system=False)


def _with_enum_prefix(body: dict[str, object]) -> dict[str, object]:
    kept = {key: body[key] for key in ("id", "pool", "version", "example_count", "generation")}
    return {**kept, "state": f"TASK_STATE_{body['state']}"}


def wait_for(client: Client, task: str, wait: Wait, timeout: float) -> pb.Task:
    """Polls until the task is embedded or matched; raises DeadlineExceeded after ``timeout`` seconds."""
    wanted = PROGRESS[pb.TASK_STATE_EMBEDDED if wait is Wait.embedded else pb.TASK_STATE_MATCHED]
    deadline = time.monotonic() + timeout
    while True:
        found = client.registry.get_task(id=task)
        if PROGRESS.get(found.state, 0) >= wanted:
            return found
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "TASK_NOT_READY",
                f"{task} is {_state(found)} after {timeout:g} s: see the worker's log, and whether a backend "
                "of kind engine is registered",
            )
        time.sleep(0.05)


@app.command("list")
def list_all(pool: PoolOption = "", as_json: JsonFlag = False) -> None:
    """List tasks."""
    with connect() as client:
        found = list(client.registry.list_tasks(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = (
        (t.id, t.pool, t.metric, t.version, t.example_count, _state(t), evidence.lift_summary(t))
        for t in found
    )
    print_table(("task", "pool", "metric", "version", "examples", "state", "base → routed"), rows)


@app.command("show")
def show(task: str, as_json: JsonFlag = False) -> None:
    """Show a task and its lift card: what routing gains over the base, and the best adapters.

    --json has the task with all its affinities.
    """
    with connect() as client:
        found = client.registry.get_task(id=task)
        measured = list(client.registry.list_affinities(task_id=task, page_size=1_000))
    best = evidence.best_first(measured)
    if as_json:
        whole = {**to_dict(found), "affinities": [to_dict(one) for one in best]}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    for line in evidence.lift_card(found, best):
        out.print(line)
    out.print()
    _show(found, as_json)
    if best:
        out.print()
        rows = (
            (
                one.adapter_id,
                evidence.score_text(one),
                one.count,
                evidence.lift_text(one),
                "eligible" if one.eligible else "",
            )
            for one in evidence.shortened(best, TOP)
        )
        print_table(("adapter", "score %", "examples", "lift ± 95 %", ""), rows)


@app.command("delete")
def delete(task: str) -> None:
    """Delete a task with its validation sets and affinities."""
    with connect() as client:
        client.registry.delete_task(id=task)


def _state(task: pb.Task) -> str:
    return state_name(pb.TaskState.Name(task.state), "TASK_STATE_")


def _show(task: pb.Task, as_json: bool) -> None:
    if as_json:
        print_json(task)
        return
    print_fields(
        (
            ("task", task.id),
            ("pool", task.pool),
            ("state", _state(task)),
            ("version", f"{task.version} ({task.example_count} examples)"),
            ("metric", task.metric),
            ("tags", ", ".join(task.tags)),
            ("description", task.description),
            ("generation", task.generation),
        )
    )
