"""Downloads the public FLAN collection as `make bench-routing FLAN=DIR` reads it: `make flan DIR=path`.

48 tasks in ten clusters, from the files by task of the dataset Muennighoff/flan (FLAN 2021, ten templates a
task) at a pinned revision: tasks.jsonl, validation.jsonl and queries.jsonl, the same rows for the same seed.
No query stands in a validation set. What adapters scored on these tasks, affinity.csv, is not public: without
it the benchmark tells how often the right task is found, and nothing about scores.

Written and tested against that dataset's file names and columns as pages and other projects show them; the
download itself was never run where this was written, for lack of a network.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from rich.console import Console
from rich.progress import track

DATASET = "Muennighoff/flan"
REVISION = "049702ca5ffc5b3c62bf226aac67ba1493e8d548"
SPLIT = "validation"

CLUSTERS: dict[str, tuple[str, ...]] = {
    "sentiment": ("exact_match", "imdb_reviews", "sentiment140", "sst2", "yelp_polarity_reviews"),
    "nli": (
        *("exact_match", "anli_r1", "anli_r2", "anli_r3", "cb", "mnli_matched", "mnli_mismatched"),
        *("qnli", "rte", "snli", "wnli"),
    ),
    "reading comp": ("exact_match", "bool_q", "drop", "multirc", "openbookqa", "squad_v1", "squad_v2"),
    "read.comp.w:commonsense": ("exact_match", "cosmos_qa", "record"),
    "commonsense": ("exact_match", "copa", "hellaswag", "piqa", "story_cloze"),
    "closed_book QA": ("exact_match", "arc_challenge", "arc_easy", "natural_questions", "trivia_qa"),
    "paraphrase": ("exact_match", "glue_mrpc", "glue_qqp", "paws_wiki", "stsb"),
    "coreference": ("exact_match", "definite_pronoun_resolution", "wsc"),
    "struct to text": ("rouge", "common_gen", "dart", "e2e_nlg", "web_nlg_en"),
    "translation": (
        *("bleu", "para_crawl_enes", "wmt14_enfr", "wmt16_translate_csen", "wmt16_translate_deen"),
        *("wmt16_translate_fien", "wmt16_translate_roen", "wmt16_translate_ruen", "wmt16_translate_tren"),
    ),
}
"""By cluster: the metric of its tasks, then the tasks."""

Row = dict[str, str]


class Refused(Exception):
    """What kept the data from being made, and what to do."""


def main(
    directory: Annotated[Path, typer.Argument(help="Folder to make; it must be empty.")],
    without: Annotated[list[str], typer.Option(help="A task to leave out; may be repeated.")] = [],  # noqa: B006
    validation: Annotated[int, typer.Option(min=2, help="Examples of each validation set.")] = 20,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each task.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
) -> None:
    """Downloads FLAN, some 30 MB, and writes tasks.jsonl, validation.jsonl and queries.jsonl."""
    tasks = [row for row in task_rows() if row["task"] not in without]
    try:
        if directory.exists() and any(directory.iterdir()):
            raise Refused(f"{directory} is not empty: name a new folder, so that nothing is overwritten")
        parts: dict[str, list[Row]] = {"tasks": tasks, "validation": [], "queries": []}
        for row in track(tasks, "downloading", console=Console(stderr=True)):
            name = row["task"]
            chosen = choose(name, read_rows(download(name)), validation + queries, seed)
            parts["validation"] += chosen[:validation]
            parts["queries"] += chosen[validation:]
        unseen(parts)
        write(directory, parts)
    except Refused as refusal:
        typer.echo(f"flan: {refusal}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{len(tasks)} tasks, {len(parts['queries'])} queries in {directory}")


def task_rows() -> list[Row]:
    """Returns all tasks with cluster and metric."""
    return [
        {"task": task, "cluster": cluster, "metric": metric}
        for cluster, (metric, *tasks) in CLUSTERS.items()
        for task in tasks
    ]


def download(task: str) -> Path:
    """Returns a task's file, from the hub or its cache; raises Refused."""
    name = f"{SPLIT}/{task}_10templates_{SPLIT}.jsonl"
    try:
        return Path(hf_hub_download(DATASET, name, repo_type="dataset", revision=REVISION))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise Refused(
            f"{name} of dataset {DATASET} cannot be downloaded ({type(error).__name__}). This needs a "
            "network: see that HF_HUB_OFFLINE is not set and that proxies are, and run it again; what has "
            f"arrived is kept. If only this file is missing, leave it out: --without {task}"
        ) from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yields `input` and `target` of a dataset's file, whose lines hold `inputs`, `targets` and `task`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            yield {"input": str(row["inputs"]), "target": str(row["targets"])}
        except (ValueError, KeyError, TypeError):
            raise Refused(
                f"{path}, line {number} is not an object with inputs and targets: the dataset has another "
                "format than this script knows"
            ) from None


def choose(task: str, rows: Iterator[Row], count: int, seed: int) -> list[Row]:
    """Returns ``count`` rows of different inputs that are not blank; the same for the same seed.

    Raises Refused where there are fewer.
    """
    distinct = {row["input"]: row["target"] for row in rows if row["input"].strip() and row["target"]}
    if len(distinct) < count:
        raise Refused(
            f"task {task} has {len(distinct)} different inputs, {count} are needed: ask for fewer by "
            f"--validation and --queries, or leave it out: --without {task}"
        )
    chosen = random.Random(f"{seed}/{task}").sample(sorted(distinct), count)  # noqa: S311
    return [{"task": task, "input": text, "target": distinct[text]} for text in chosen]


def unseen(parts: dict[str, list[Row]]) -> None:
    """Drops queries that stand in a validation set, be it another task's, as FLAN has twins."""
    known = {row["input"] for row in parts["validation"]}
    parts["queries"] = [row for row in parts["queries"] if row["input"] not in known]


def write(directory: Path, parts: dict[str, list[Row]]) -> None:
    """Writes one file of JSON lines for each part."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
