"""The engine beside PEFT: exactness, and generated tokens a second with a weighted set for each row.

Run as ``python -m benchmarks.engine [--json PATH]``; every side has one thread, and all share one core.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.engine_arm import engine_process, one_core
from benchmarks.engine_models import Pool, Weighted, random_pool, random_prompts, stored, weighted_sets
from benchmarks.engine_sides import EngineSide, Made, PeftSide
from lorauter.lora.weights import LoraWeights, read_weights
from lorauter_engine.model.network import Network, choose_placement
from lorauter_engine.model.plan import Concatenations, plan_batch
from lorauter_engine.service.residency import Residency
from lorauter_suite.demo.data import TASKS, task_examples
from lorauter_suite.demo.export import MAX_NEW_TOKENS
from lorauter_suite.demo.verify import POOL
from lorauter_suite.machine import machine, versions

ROWS = 16
SET_SIZE = 3
NEW_TOKENS = 32
"""Tokens that every row of the random model generates; it knows no end."""

SIDES = ("engine", "engine_without_adapters", "peft_switching", "peft_mixed")
Figures = dict[str, Any]
Progress = Callable[[str], None]


def bench(
    pool: Pool, prompts: Sequence[str], new_tokens: int, seed: int, rounds: int, say: Progress
) -> Figures:
    """Returns ``exactness``, ``generate_tokens_per_s`` (medians of ``rounds`` in turns) and ``agreement``.

    The latter is the share of rows that PEFT, switching, answers word for word as the engine does.
    """
    sets = weighted_sets(sorted(pool.digests), ROWS, SET_SIZE, seed)
    say("loading PEFT and writing composites")
    peft = PeftSide(pool, sets)
    say("exactness")
    exactness = _exactness(pool, prompts, sets, peft)
    with engine_process(pool.base, pool.store.root) as url:
        engine = EngineSide(url, pool.digests)
        singles = [weighted[0][0] for weighted in sets]
        sides: dict[str, Callable[[], Made]] = {
            "engine": lambda: engine.generate(prompts, sets, new_tokens),
            "engine_without_adapters": lambda: engine.generate(prompts, [()] * ROWS, new_tokens),
            "peft_switching": lambda: peft.switching(prompts, new_tokens),
            "peft_mixed": lambda: peft.mixed(prompts, singles, new_tokens),
        }
        say("every side once, to warm up")
        first = {name: side() for name, side in sides.items()}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for name in (*SIDES[turn % 4 :], *SIDES[: turn % 4]):
                started = time.perf_counter()
                made = sides[name]()
                rates[name].append(made.tokens / (time.perf_counter() - started))
        engine.close()
    pairs = zip(first["engine"].texts, first["peft_switching"].texts, strict=True)
    return {
        "exactness": exactness,
        "generate_tokens_per_s": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "agreement": sum(a.strip() == b.strip() for a, b in pairs) / ROWS,
    }


def _exactness(pool: Pool, prompts: Sequence[str], sets: Sequence[Weighted], peft: PeftSide) -> Figures:
    """Returns max|difference| / max(1, max|logit|) to the float64 sum of deltas, at worst over all rows."""
    tokenizer: Any = AutoTokenizer.from_pretrained(pool.base)
    ids: list[list[int]] = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    engine = _engine_logits(pool, ids, sets)
    reference = _Reference(pool)
    worst = {"engine": 0.0, "composite": 0.0}
    for place, weighted in enumerate(sets):
        expected = reference.logits(ids[place], weighted)
        scale = max(1.0, float(expected.abs().max()))
        for name, logits in (("engine", engine[place]), ("composite", peft.logits(place, prompts[place]))):
            worst[name] = max(worst[name], float((logits.double() - expected).abs().max()) / scale)
    return worst


def _engine_logits(pool: Pool, ids: Sequence[list[int]], sets: Sequence[Weighted]) -> Sequence[torch.Tensor]:
    placement = choose_placement("cpu", "float32")
    network = Network(pool.base, placement)
    residency = Residency(pool.store, network.modules, placement, 2**31, 1024, 128)
    adapters = [residency.acquire(sorted((pool.digests[name], w) for name, w in s)) for s in sets]
    plan = plan_batch(adapters, max(map(len, ids)), Concatenations(2**29))
    logits = network.prefill(ids, plan, [range(len(row)) for row in ids], None)
    return torch.split(logits, list(map(len, ids)))


class _Reference:
    """The base in float64, with w s B (A x) added after each layer in float64."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            pool.base, dtype=torch.float64, attn_implementation="eager"
        )

    @torch.no_grad()
    def logits(self, ids: list[int], weighted: Weighted) -> torch.Tensor:
        """Returns (tokens, vocabulary) float64."""
        hooks = [
            self._model.get_submodule(name).register_forward_hook(_adding(weight, lora))
            for adapter, weight in weighted
            for name, lora in read_weights(self._pool.folders[adapter]).items()
        ]
        try:
            logits: torch.Tensor = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            return logits
        finally:
            for hook in hooks:
                hook.remove()


def _adding(weight: float, lora: LoraWeights) -> Callable[..., torch.Tensor]:
    a, b = torch.from_numpy(lora.a).double(), torch.from_numpy(lora.b).double()

    def hook(_: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + weight * lora.scale * (inputs[0] @ a.T @ b.T)

    return hook


def demo_pool(folder: Path) -> tuple[Pool, list[str]]:
    """Returns the demo pool, its store under ``folder``, and the prompts of 16 of its tasks."""
    adapters = {path.name: path for path in sorted((POOL / "adapters").iterdir())}
    prompts = [task_examples(task, "validation", 1, 0)[0].input for task in TASKS[:ROWS]]
    return stored(POOL / "base", adapters, folder), prompts


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(help="What models, adapters, sets and prompts are drawn from.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of which the median is taken.")] = 3,
) -> None:
    """Measures exactness and generated tokens a second, of 16 rows with 16 weighted sets of 3 adapters."""
    started = time.perf_counter()
    console = Console()

    def say(line: str) -> None:
        console.print(line, style="dim")

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lorauter-engine-") as folder, one_core():
        say("making a Llama of 110 M random parameters and 48 adapters")
        pool = random_pool(Path(folder) / "random", ROWS * SET_SIZE, seed)
        figures = bench(pool, random_prompts(ROWS, seed), NEW_TOKENS, seed, rounds, say)
        demo, prompts = demo_pool(Path(folder) / "demo")
        figures["demo"] = bench(demo, prompts, MAX_NEW_TOKENS, seed, rounds, say)
    console.print(_table(figures))
    if path is not None:
        about = {"machine": machine(), "versions": versions(), "seed": seed, "threads": 1}
        seconds = round(time.perf_counter() - started, 1)
        path.write_text(json.dumps({**about, "seconds": seconds, **figures}, indent=2) + "\n")


def _table(figures: Figures) -> Table:
    table = Table(
        "", "random Llama, 110 M", "demo model, 0.64 M", title="tokens/s", title_justify="left", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    both = (figures, figures["demo"])
    for side in SIDES:
        rates = (each["generate_tokens_per_s"][side] for each in both)
        table.add_row(side.replace("_", " "), *(f"{rate:,.0f}" for rate in rates))
    for side in ("engine", "composite"):
        table.add_row(f"error of the {side}", *(f"{each['exactness'][side]:.1e}" for each in both))
    return table


if __name__ == "__main__":
    typer.run(main)
