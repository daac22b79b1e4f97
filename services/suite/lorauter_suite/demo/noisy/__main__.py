"""Makes a noisy pool: `python -m lorauter_suite.demo.noisy --out DIR --count 1536 --seed N`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.noisy.broken import BROKEN
from lorauter_suite.demo.noisy.pool import MANIFEST, write_pool
from lorauter_suite.demo.noisy.recipe import NoisyRecipe
from lorauter_suite.demo.noisy.training import trained_stacks
from lorauter_suite.demo.noisy.weights import Workshop
from lorauter_suite.demo.verify import POOL


def cache_folder() -> Path:
    """Where trainings are kept unless told otherwise: lorauter/noisy under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorauter" / "noisy"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pool; must be empty or not exist.")],
    count: Annotated[int, typer.Option(min=2, help="Sound adapters; the broken ones come on top.")] = 1536,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    trainings: Annotated[int, typer.Option(min=0, help="Times that all tasks are trained anew.")] = 2,
    cache: Annotated[Path | None, typer.Option(help="Where trainings are kept.")] = None,
) -> None:
    """Makes a noisy pool on the demo base and writes its adapters as PEFT folders."""
    if out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty")
    recipe = NoisyRecipe(count=count, seed=seed, trainings=trainings)
    with Progress() as progress:
        bar = progress.add_task("training", total=recipe.trainings * recipe.checkpoints[-1])
        stacks = trained_stacks(
            recipe, cache or cache_folder(), lambda done: progress.update(bar, completed=done)
        )
        workshop = Workshop(recipe, load_pool(POOL).stack, stacks)
        writing = progress.add_task("writing", total=count + len(BROKEN))
        write_pool(out, workshop, lambda: progress.advance(writing))
    typer.echo(f"{count} adapters and {len(BROKEN)} broken ones in {out}; the truth is in {out / MANIFEST}")


if __name__ == "__main__":
    typer.run(main)
