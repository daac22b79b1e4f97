"""Matching from the command line: watched, stopped, read, drawn, taken out and in again."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lorauter import Client
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, demo_tasks
from lorauter_suite.suite import Addresses
from tests.ctrl_c import hear_ctrl_c

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 4
EXIT_INTERRUPTED = 130

TASK = "reverse-word"


@pytest.fixture
def long_task(client: Client) -> Iterator[str]:
    """A task with the test examples of all demo tasks: measuring it takes seconds. Gone afterwards."""
    examples = [pb.ValidationExample(**one) for demo in demo_tasks() for one in demo.examples("test")]
    client.registry.create_task(id="long", pool=POOL_ID, metric="exact_match")
    client.registry.put_validation_set("long", examples)
    yield "long"
    for operation in client.registry.list_operations(pool=POOL_ID):
        if not operation.HasField("end_time"):
            client.registry.cancel_operation(id=operation.id)
            for _ in client.registry.watch_operation(id=operation.id):
                pass
    client.registry.delete_task(id="long")


def listed(lorauter: Any, *arguments: str) -> list[dict[str, Any]]:
    """Returns what `affinity list --json` prints."""
    found: list[dict[str, Any]] = json.loads(lorauter("affinity", "list", *arguments, "--json").stdout)
    return found


def test_matching_is_watched_until_all_is_measured(lorauter: Any) -> None:
    done = lorauter("match", POOL_ID, "--task", TASK, "--remeasure", "--watch", "--strategy", "exhaustive")
    assert "SUCCEEDED" in done.stdout
    assert "1 of 1 tasks" in done.stdout
    assert " evaluations, " in done.stderr
    operation = done.stdout.split()[0]
    again = json.loads(lorauter("operation", "watch", operation, "--json").stdout)
    assert again["state"] == "OPERATION_STATE_SUCCEEDED"
    assert again["done"] == again["total"] != "0"


def test_what_is_left_is_said_when_the_budget_is_spent(lorauter: Any, long_task: str) -> None:
    # anew, for on a busy machine all may be measured by itself before the command has started
    budget = ("--remeasure", "--max-evaluations", "50", "--priority", "10")
    done = lorauter("match", POOL_ID, "--task", long_task, *budget, "--watch", status=EXIT_UNFINISHED)
    assert "left: 1 task, about " in done.stdout
    assert "budget of 50 evaluations" in done.stdout


def test_operation_goes_on_when_watching_is_interrupted(
    lorauter: Any, client: Client, long_task: str
) -> None:
    arguments = ("match", POOL_ID, "--task", long_task, "--strategy", "exhaustive", "--watch")
    watching = subprocess.Popen(
        [*lorauter.program, *arguments],
        env=lorauter.environment,
        preexec_fn=hear_ctrl_c,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == EXIT_INTERRUPTED
    assert "evaluations" in first
    newest = next(client.registry.list_operations(pool=POOL_ID))
    assert f"lorauter operation watch {newest.id}" in said
    assert f"lorauter operation cancel {newest.id}" in said
    assert not newest.cancel_requested
    assert newest.state in (pb.OPERATION_STATE_PENDING, pb.OPERATION_STATE_RUNNING)
    lorauter("operation", "cancel", newest.id)
    assert "left:" in lorauter("operation", "watch", newest.id, status=EXIT_UNFINISHED).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strategy", "guess"), "exhaustive"),
        (("--max-evaluations", "0"), "max_evaluations"),
        (("--max-time", "0s"), "max_duration"),
        (("--priority", "101"), "priority"),
        (("--task", "nowhere"), "nowhere"),
    ],
)
def test_matching_is_refused_when_it_asks_for_nonsense(
    lorauter: Any, arguments: tuple[str, ...], said: str
) -> None:
    assert said in lorauter("match", POOL_ID, *arguments, status=EXIT_REFUSED).stderr


def test_matching_is_refused_when_a_duration_has_no_unit_that_is_known(lorauter: Any) -> None:
    assert "1h30m" in lorauter("match", POOL_ID, "--max-time", "5 days", status=EXIT_USAGE).stderr


def test_affinities_are_listed_best_first(lorauter: Any) -> None:
    found = listed(lorauter, "--task", TASK)
    routed = [one["shrunk_score"] for one in found]
    assert routed == sorted(routed, reverse=True)
    assert "base" in {one["adapter_id"] for one in found}
    printed = lorauter("affinity", "list", "--task", TASK, "--top", "3").stdout
    rows = [line.split()[0] for line in printed.splitlines()]
    assert rows[:3] == ["adapter", TASK, found[0]["adapter_id"]]
    assert "base" in rows
    assert f"… {len(found) - 4} more" in printed


def test_only_what_beats_the_base_is_listed_when_eligible_is_asked(lorauter: Any) -> None:
    found = listed(lorauter, "--task", TASK, "--eligible")
    assert 1 < len(found) < len(listed(lorauter, "--task", TASK))
    assert all(one["eligible"] and one["lift"] > one["lift_error"] for one in found[:-1])
    assert found[-1]["adapter_id"] == "base"


def test_csv_has_what_json_has(lorauter: Any) -> None:
    arguments = ("affinity", "list", "--task", TASK, "--top", "2")
    rows = list(csv.DictReader(io.StringIO(lorauter(*arguments, "--csv").stdout)))
    found = json.loads(lorauter(*arguments, "--json").stdout)
    assert [row["adapter_id"] for row in rows] == [one["adapter_id"] for one in found]
    assert [float(row["score"]) for row in rows] == [one["score"] for one in found]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_affinities_are_the_same_when_exported_and_imported(
    lorauter: Any, client: Client, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"affinities.{suffix}"
    before = list(client.registry.list_affinities(task_id=TASK))
    assert (
        f"exported {len(before)} affinities"
        in lorauter("affinity", "export", str(file), "--task", TASK).stdout
    )
    assert f"imported {len(before)}" in lorauter("affinity", "import", str(file)).stdout
    for was, now in zip(before, client.registry.list_affinities(task_id=TASK), strict=True):
        was.imported = now.imported
        assert now == was


def test_row_is_named_when_an_import_is_wrong(lorauter: Any, tmp_path: Path) -> None:
    before = listed(lorauter, "--task", TASK)
    file = tmp_path / "wrong.csv"
    for row, said in (
        (f"{TASK},nobody,0.5,20", "nobody"),
        (f"{TASK},base,nan,20", "score"),
        (f"{TASK},base,1.5,20", "score"),
        ("nowhere,base,0.5,20", "nowhere"),
        (f"{TASK},base,half,20", "score"),
    ):
        file.write_text(f"task_id,adapter_id,score,count\n{TASK},base,0.1,20\n{row}\n", encoding="utf-8")
        refused = lorauter("affinity", "import", str(file), status=EXIT_REFUSED).stderr
        assert "line 3" in refused
        assert said in refused
    assert listed(lorauter, "--task", TASK) == before


def test_heat_map_is_drawn_of_all_that_was_measured(lorauter: Any, tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    lorauter("affinity", "plot", "--pool", POOL_ID, "--out", str(file))
    pixels = imread(file)
    height, width, _ = pixels.shape
    assert 800 < height < 4_000
    assert 1_200 < width < 6_000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100
    drawing = tmp_path / "map.svg"
    said = lorauter("affinity", "plot", "--adapters", "5", "--out", str(drawing)).stdout
    assert " tasks, 5 of " in said
    assert f">{TASK}</text>" in drawing.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["map.bmp", "map", "nowhere/map.png"])
def test_heat_map_is_refused_when_it_cannot_be_written(lorauter: Any, tmp_path: Path, name: str) -> None:
    refused = lorauter("affinity", "plot", "--out", str(tmp_path / name), status=EXIT_REFUSED).stderr
    assert name in refused


def test_lift_card_says_what_routing_gains(lorauter: Any) -> None:
    shown = lorauter("task", "show", TASK)
    whole = json.loads(lorauter("task", "show", TASK, "--json").stdout)
    lift = whole["lift"]
    card = shown.stdout.splitlines()[0]
    assert card.startswith(f"base {100 * lift['base_score']:.0f} → routed {100 * lift['score']:.0f} ± ")
    assert card.endswith(f"with {lift['adapter_id']} (n = {lift['count']} examples that did not choose it)")
    assert whole["affinities"][0]["adapter_id"] in shown.stdout
    assert {"base", lift["adapter_id"]} <= {one["adapter_id"] for one in whole["affinities"]}


def test_lift_card_says_so_when_a_task_has_no_examples(lorauter: Any, client: Client) -> None:
    client.registry.create_task(id="empty", pool=POOL_ID, metric="exact_match")
    assert "no validation set" in lorauter("task", "show", "empty").stdout
    client.registry.delete_task(id="empty")


def test_quarantined_adapter_is_shown_with_its_reason(lorauter: Any, addresses: Addresses) -> None:
    files = Path(addresses.incoming) / "recalled"
    shutil.copytree(POOL_DIRECTORY / "adapters" / "reverse-word-a", files)
    config = json.loads((files / "adapter_config.json").read_text(encoding="utf-8"))
    (files / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}), encoding="utf-8")
    lorauter("adapter", "register", "recalled", str(files), "--pool", POOL_ID)
    lorauter("adapter", "disable", "recalled", "--reason", "it lies", "--now")
    assert "it lies" in lorauter("adapter", "list", "--state", "quarantined").stdout
    assert "QUARANTINED: it lies" in lorauter("adapter", "show", "recalled").stdout
    assert "recalled: it lies" in lorauter("affinity", "list", "--task", TASK).stderr
