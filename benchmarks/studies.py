"""What was tried in routing: `python -m benchmarks.studies --flan DIR [--json PATH] [--plot PATH]`.

Designs are chosen on validation inputs, in folds or with their task or cluster away; queries stand beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.flan import Flan, Floats, read_flan
from benchmarks.flan_pools import REGIMES, Embedded, FlanPools
from benchmarks.routing import calibration_error
from benchmarks.studies_channels import TRIED
from benchmarks.studies_lab import DEFAULT, Texts, read_texts, with_vectors
from benchmarks.studies_models import correlations, encoded, paper_vectors, stand_ins
from benchmarks.studies_plot import draw
from benchmarks.studies_runs import QUERIES, VALIDATION, Run, compared, run, shares_of, table
from benchmarks.studies_scores import few_examples
from benchmarks.studies_sets import by_examples, heads, long_queries, without_templates
from benchmarks.studies_untypical import (
    HEATS,
    RULES,
    by_heat,
    by_rule,
    flagged,
    flagged_of_few,
    risk_coverage,
)
from lorauter.encoder import DEFAULT_ENCODER, load_encoder
from lorauter_suite.machine import machine, versions

SIDES = (VALIDATION, QUERIES)
FIGURES = ("top1", "log_loss", *REGIMES)

Report = dict[str, Any]
Rows = Mapping[str, Mapping[str, Any]]

WIDTH = 140
"""Columns of a table that goes to a file."""

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What all studies share: the data, both sides of it as texts, and what `default` does with them."""

    flan: Flan
    directory: Path
    embedded: Embedded
    validation: Texts
    queries: Texts
    default: Run
    shares: Floats
    seed: int


def main(
    flan: Annotated[Path, typer.Option(help="Folder with the FLAN data.")],
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw risk against coverage into this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of draws.")] = 0,
) -> None:
    """Tries designs of routing on real queries, judged by the scores that adapters really had."""
    started = time.perf_counter()
    bench = _bench(read_flan(flan), flan, seed)
    report: Report = {}
    for name, study in STUDIES.items():
        began = time.perf_counter()
        report[name] = study(bench)
        console.print(f"{name}: {time.perf_counter() - began:.0f} s", style="dim")
    report |= {"machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.perf_counter() - started, 1)
    out = Console()
    show(report, out if out.is_terminal else Console(width=WIDTH))
    if path is not None:
        path.write_text(json.dumps(_rounded(report), indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        draw({PANELS[name]: report["risk_coverage"][name] for name in PANELS}, plot)


def _bench(flan: Flan, directory: Path, seed: int) -> Bench:
    embedded = encoded(flan, load_encoder(DEFAULT_ENCODER))
    validation, queries = read_texts(flan, embedded)
    default = run(flan, DEFAULT, validation, queries)
    return Bench(flan, directory, embedded, validation, queries, default, shares_of(flan.affinity), seed)


def designs(bench: Bench) -> Report:
    """Channels: each design less `default`, on both sides."""
    found: Report = {side: {"default": _plain(bench, bench.default, side)} for side in SIDES}
    for design in TRIED:
        tried = run(bench.flan, design, bench.validation, bench.queries)
        for side in SIDES:
            found[side][design.name] = compared(bench.flan, tried, bench.default, bench.shares, side)
    return found


def untypical(bench: Bench) -> Report:
    """Rules for untypical queries: each less `default`, on both sides."""
    runs = {name: by_rule(bench.default, rule) for name, rule in RULES.items()}
    runs |= {name: by_heat(bench.default, level, power) for name, (level, power) in HEATS.items()}
    return {
        side: {
            name: compared(bench.flan, each, bench.default, bench.shares, side) for name, each in runs.items()
        }
        for side in SIDES
    }


def scores(bench: Bench) -> Report:
    """Few examples behind each score: rules that draw scores to what is usual."""
    return {side: few_examples(bench.flan, bench.default, side, bench.seed) for side in SIDES}


def examples(bench: Bench) -> Report:
    """5, 10 and 20 examples a task."""
    return dict(by_examples(bench.flan, bench.validation, bench.queries, bench.shares))


def wordings(bench: Bench) -> Report:
    """Queries in wordings that no validation set has."""
    return asdict(without_templates(bench.flan, bench.validation, bench.queries, bench.shares))


def models(bench: Bench) -> Report:
    """`default` less the paper's router where something stands in for other queries or another model."""
    theirs = paper_vectors(bench.flan, bench.directory)
    sides = bench.validation, bench.queries
    gains = stand_ins(bench.flan, bench.default, sides, theirs, bench.seed)
    return {"gains": gains, "correlation": dict(correlations(bench.flan, bench.seed))}


def int8(bench: Bench) -> Report:
    """The int8 encoder beside the fp32 one."""
    small = encoded(bench.flan, load_encoder(DEFAULT_ENCODER, precision="int8"))
    sides = with_vectors(bench.flan, small, bench.validation, bench.queries)
    other = run(bench.flan, DEFAULT, *sides)
    return {
        side: {
            "fp32": _plain(bench, bench.default, side),
            "int8": _plain(bench, other, side),
            "int8 less fp32": compared(bench.flan, other, bench.default, bench.shares, side),
        }
        for side in SIDES
    }


def long_inputs(bench: Bench) -> Report:
    """Queries of over 254 tokens, read at both ends and at the head alone."""
    cut, is_long = heads(bench.embedded, bench.flan, load_encoder(DEFAULT_ENCODER))
    sides = with_vectors(bench.flan, cut, bench.validation, bench.queries)
    mask = np.concatenate([is_long[name] for name in bench.flan.tasks])
    other = run(bench.flan, DEFAULT, *sides)
    return {"queries": int(mask.sum()), **long_queries(bench.flan, bench.default, other, mask, bench.shares)}


def calibration(bench: Bench) -> Report:
    """How many queries typicality flags, by what made it; the band is that of known tasks, non_ood."""
    decisions = FlanPools(bench.flan, bench.embedded).decisions("non_ood", "default")
    shipped = np.concatenate([[one.typicality for one in each] for _, each in decisions])
    sources = {
        "as shipped, queries": (bench.queries.owners, shipped),
        **{
            f"five folds, {side}, {regime}": (each.own, each.typicality)
            for (side, regime), each in bench.default.items()
            if regime != "semi_ood"
        },
    }
    found = {name: flagged(own, each) for name, (own, each) in sources.items()}
    return {**found, "exchangeable": flagged_of_few(bench.seed)}


def coverage(bench: Bench) -> Report:
    """Risk against coverage on queries, for known tasks and for unseen clusters."""
    return {
        regime: risk_coverage(bench.flan, bench.default[QUERIES, regime], regime, bench.shares)
        for regime in PANELS
    }


PANELS = {"non_ood": "known tasks", "unseen_cluster": "own cluster of tasks and adapters away"}

STUDIES: Mapping[str, Callable[[Bench], Report]] = {
    "designs": designs,
    "untypical": untypical,
    "scores": scores,
    "examples": examples,
    "wordings": wordings,
    "models": models,
    "int8": int8,
    "long_inputs": long_inputs,
    "calibration": calibration,
    "risk_coverage": coverage,
}


def _plain(bench: Bench, of: Run, side: str) -> dict[str, float]:
    asked = of[side, "non_ood"]
    found = table(bench.flan, of, bench.shares, side)
    return found | {"ece": calibration_error(asked.posterior.max(axis=1), asked.right > 0)}


def show(report: Report, out: Console) -> None:
    """Prints a table for each study."""
    for side in SIDES:
        _table(out, f"designs less default, {side}", report["designs"][side], FIGURES)
        _table(out, f"rules for untypical queries less default, {side}", report["untypical"][side], REGIMES)
        for count, rows in report["scores"][side].items():
            _table(out, f"{count} examples behind each score, less the first, {side}", rows, REGIMES)
        _table(out, f"int8, {side}", report["int8"][side], (*FIGURES, "ece"))
    for count, rows in report["examples"].items():
        columns = (*FIGURES, "ece", "whitened", "flagged_0.05")
        _table(out, f"{count} examples a task, queries", rows, columns)
    away = report["wordings"]
    short = ("top1", "log_loss", "non_ood", "typicality", "flagged_0.05", "ece")
    for name, rows in away["figures"].items():
        _table(out, f"{away['queries']} queries, templates away: {name}", rows, short)
    _table(out, "templates away less as many at random", away["differences"], short[:4])
    _table(out, "templates away, less default", away["beside_default"], short[:4])
    _table(out, "default less the paper's router on its own encoder", report["models"]["gains"], REGIMES)
    long = {name: row for name, row in report["long_inputs"].items() if name != "queries"}
    _table(out, f"{report['long_inputs']['queries']} queries over 254 tokens", long, short)
    for name, rows in report["calibration"].items():
        _table(out, f"flagged, {name}", rows, next(iter(rows.values())).keys())
    out.print(f"{report['seconds']} s", style="dim")


def _table(out: Console, title: str, rows: Rows, columns: Any) -> None:
    made = Table(title=title, title_justify="left", box=None)
    for column in ("", *columns):
        made.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, row in rows.items():
        made.add_row(name, *(_cell(row.get(column)) for column in columns))
    out.print(made)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"{value[0]:+.2f} ± {value[1]:.2f}" if value[1] else f"{value[0]:.2f}"
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    typer.run(main)
