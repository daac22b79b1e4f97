"""The FLAN download, but for the network: from files in the dataset's format to what the benchmark reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scripts.flan_download import DATASET, REVISION, task_rows

from benchmarks.flan import read_flan

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "flan_download.py"
TASKS = [row["task"] for row in task_rows()]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub's cache that holds every task's file: 60 rows, in the dataset's own format."""
    folder = f"datasets--{DATASET.replace('/', '--')}"
    files = tmp_path / "hub" / folder / "snapshots" / REVISION / "validation"
    files.mkdir(parents=True)
    for task in TASKS:
        rows = [
            {
                "inputs": f"{task}: is {n}\u2028 odd?\n\nOPTIONS:\n- ja",
                "targets": "ja",
                "task": f"{task}_10templates",
            }
            for n in range(60)
        ]
        rows += [*rows[:20], {"inputs": " ", "targets": "no", "task": task}]
        if task.startswith("mnli"):
            rows = [{"inputs": f"twin {n}", "targets": "yes", "task": task} for n in range(60)]
        lines = [json.dumps(row, ensure_ascii=task == "sst2") for row in rows]
        (files / f"{task}_10templates_validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the script on that cache, without a network."""
    known = {**os.environ, "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=known,
        timeout=60,
        check=False,
    )


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_layout_is_the_benchmarks_and_the_same_again_when_the_seed_is(cache: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for target, seed in ((first, "0"), (again, "0"), (other, "1")):
        done = run(cache, str(target), "--seed", seed)
        assert done.returncode == 0, done.stderr
    assert {row["metric"] for row in lines(first / "tasks.jsonl")} == {"exact_match", "rouge", "bleu"}
    flan = read_flan(first, needs_scores=False)
    assert (sorted(flan.tasks), flan.is_scored) == (sorted(TASKS), False)
    assert [len(flan.validation[task]) for task in TASKS] == [20] * 48
    validation, queries = lines(first / "validation.jsonl"), lines(first / "queries.jsonl")
    assert Counter(row["task"] for row in validation) == dict.fromkeys(TASKS, 20)
    assert set(validation[0]) == set(queries[0]) == {"task", "input", "target"}
    assert not {row["input"] for row in validation} & {row["input"] for row in queries}
    counts = Counter(row["task"] for row in queries)
    assert {count for task, count in counts.items() if not task.startswith("mnli")} == {20}
    assert 0 < counts["mnli_matched"] < 20
    for name in ("tasks.jsonl", "validation.jsonl", "queries.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "validation.jsonl").read_bytes() != (other / "validation.jsonl").read_bytes()


def test_nothing_is_overwritten_when_the_folder_holds_something(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "affinity.csv").write_text("precious")
    done = run(cache, str(tmp_path / "taken"))
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["affinity.csv"]


def test_user_learns_what_to_do_when_there_is_no_network(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path / "new"))
    assert done.returncode == 1
    assert "needs a network" in done.stderr
    assert "--without imdb_reviews" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"inputs": "only one", "targets": "x"}\n', "sst2 has 1 different inputs, 40 are needed"),
        ('{"input": "a", "target": "b"}\n', "line 1 is not an object with inputs and targets"),
        ("version https://git-lfs\n", "line 1 is not"),
    ],
)
def test_task_at_fault_is_named_when_its_file_is_not_as_expected(
    cache: Path, tmp_path: Path, content: str, said: str
) -> None:
    [file] = cache.rglob("sst2_10templates_validation.jsonl")
    file.write_text(content)
    done = run(cache, str(tmp_path / "new"))
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert run(cache, str(tmp_path / "new"), "--without", "sst2").returncode == 0
    assert len(lines(tmp_path / "new" / "tasks.jsonl")) == 47
