"""Evaluations a second of matching's evaluator and of PEFT, on the demo base with one thread each.

Run as ``python -m benchmarks.throughput [--json PATH]``.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.engine_arm import EngineArm, engine_process, one_core
from benchmarks.peft_arm import Item, Judged, PeftArm
from lorauter.lora.check import read_modules
from lorauter.lora.store import AdapterStore
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec
from lorauter_suite.demo.data import TASKS, task_examples
from lorauter_suite.demo.export import MAX_NEW_TOKENS
from lorauter_suite.demo.verify import POOL, read_manifest
from lorauter_suite.machine import machine, versions
from lorauter_worker.ports import Scoring

MODES = {"score": ("ours", "ours_checked"), "generate": ("ours",)}
"""What is measured of ours."""

ADAPTERS = 32
EXAMPLES = (8, 48)
"""Examples an adapter: a first round of matching, and a long one."""

BATCHES = {"peft_switching": (24, 48), "peft_mixed": (32, 128)}
"""Rows of a pass that PEFT is tried with; it is measured with the fastest."""

AGREEMENT = 0.99
"""Least share of equal scores: roundings decide only where two tokens are almost equally likely."""

Figures = dict[str, dict[str, dict[str, float]]]
Judge = Callable[[Sequence[Item]], list[Judged]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sides:
    """Who takes part: ours and PEFT with the same adapters."""

    ours: EngineArm
    peft: PeftArm
    scorings: Mapping[str, Scoring]

    def judge(self, mode: str, name: str, batch: int) -> Judge:
        """Returns how ``name`` judges items in ``mode`` with ``batch`` rows of a pass, which ours ignores."""
        if name.startswith("ours"):
            scoring = self.scorings[mode if name == "ours" else name]
            return lambda items: self.ours.judge(items, scoring)
        run = self.peft.score if mode == "score" else self.peft.generate
        return lambda items: run(items, name == "peft_mixed", batch)


def throughput(seed: int, rounds: int = 5, progress: Progress = lambda _: None) -> Figures:
    """Returns ``{"score"|"generate": {"8"|"48": {"ours", "peft_switching", "peft_mixed"}}}``.

    Figures are evaluations a second from texts to scores, medians of ``rounds`` in which all take turns.
    Beside them stand ``agreement``, the least share of items that PEFT scores as we do, and under `score`
    ``ours_checked``: with the generations by which matching checks that scoring tells the truth, of which
    PEFT's side has none. Raises AssertionError where ``agreement`` is below AGREEMENT.
    """
    torch.set_num_threads(1)
    figures: Figures = {}
    with one_core(), _sides(seed) as sides:
        for mode in MODES:
            for examples in EXAMPLES:
                progress(f"throughput: {mode}, {examples} examples an adapter")
                items = _items(seed, examples)
                figures.setdefault(mode, {})[str(examples)] = _measured(sides, mode, items, rounds)
    return figures


@contextmanager
def _sides(seed: int) -> Iterator[Sides]:
    exact = metric("exact_match")
    generation = GenerationSpec(MAX_NEW_TOKENS)
    scorings = {
        "score": Scoring(replace(exact, of_text=None), generation),
        "ours_checked": Scoring(exact, generation),
        "generate": Scoring(replace(exact, of_pass=None), generation),
    }
    folders = {name: POOL / "adapters" / name for name in _adapters(seed)}
    with tempfile.TemporaryDirectory(prefix="lorauter-throughput-") as folder:
        store = AdapterStore(Path(folder))
        modules = read_modules(POOL / "base")
        digests = {name: store.admit(path, modules).digest for name, path in folders.items()}
        peft = PeftArm(POOL / "base", folders, exact, MAX_NEW_TOKENS)
        with engine_process(POOL / "base", store.root) as url:
            ours = EngineArm(url, digests)
            try:
                yield Sides(ours, peft, scorings)
            finally:
                ours.close()


def _adapters(seed: int) -> list[str]:
    names = [str(entry["id"]) for entry in read_manifest()["adapters"]]
    return random.Random(seed).sample(names, ADAPTERS)  # noqa: S311 - a draw, not a secret


def _items(seed: int, examples: int) -> list[Item]:
    """Every adapter on the same examples of one task, as matching asks for them."""
    task = TASKS[seed % len(TASKS)]
    drawn = task_examples(task, "validation", examples, seed)
    return [Item(name, example.input, example.target) for name in _adapters(seed) for example in drawn]


def _measured(sides: Sides, mode: str, items: Sequence[Item], rounds: int) -> dict[str, float]:
    """Chooses PEFT's batches, checks that all say the same, then lets them take turns."""
    judges = {name: sides.judge(mode, name, 0) for name in MODES[mode]}
    expected = judges["ours"](items)
    agreements = []
    for name, batches in BATCHES.items():
        seconds = {}
        for batch in batches:
            judge = sides.judge(mode, name, batch)
            judge(items[: 2 * ADAPTERS])
            started = time.perf_counter()
            agreements.append(_agreement(expected, judge(items)))
            seconds[batch] = time.perf_counter() - started
        judges[name] = sides.judge(mode, name, min(seconds, key=lambda batch: seconds[batch]))
    agreement = min(agreements)
    assert agreement >= AGREEMENT, f"{mode}: ours and PEFT agree on {agreement:.1%} of the answers only"
    times: dict[str, list[float]] = {name: [] for name in judges}
    order = list(judges)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            started = time.perf_counter()
            judges[name](items)
            times[name].append(time.perf_counter() - started)
    rates = {name: round(len(items) / statistics.median(taken), 1) for name, taken in times.items()}
    return {**rates, "agreement": round(agreement, 4)}


def _agreement(ours: Sequence[Judged], theirs: Sequence[Judged]) -> float:
    same = [a.score == b.score for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(help="What adapters, task and examples are drawn from.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of which the median is taken.")] = 5,
) -> None:
    """Measures evaluations a second: ours, PEFT switching adapters, PEFT's mixed batches."""
    started = time.perf_counter()
    console = Console()
    figures = throughput(seed, rounds, lambda line: console.print(line, style="dim"))
    table = Table("mode", "examples", "ours", "PEFT switching", "PEFT mixed", "ours / better", "agree")
    for mode, by_examples in figures.items():
        for examples, row in by_examples.items():
            ours, switching, mixed = (row[name] for name in ("ours", *BATCHES))
            ratio = ours / max(switching, mixed)
            rates = (f"{rate:,.0f}" for rate in (ours, switching, mixed))
            table.add_row(mode, examples, *rates, f"{ratio:.2f}", f"{row['agreement']:.1%}")
    console.print(table)
    if path is not None:
        about = {"machine": machine(), "versions": versions(), "seed": seed}
        seconds = round(time.perf_counter() - started, 1)
        path.write_text(json.dumps({**about, "seconds": seconds, "throughput": figures}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
