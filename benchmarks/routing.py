"""How well queries are routed: `python -m benchmarks.routing --flan DIR [--json PATH]`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.flan import Flan, Floats, read_flan
from benchmarks.flan_pools import REGIMES, FlanPools, Mask, by_task, embedded
from benchmarks.routed import random_scores
from lorauter_suite.machine import machine, versions

BINS = 15
"""Equal-width bins of the calibration error."""

LEAST = 1e-9
"""A probability of a query's own task that is lower, or nil as beyond the paper's three, counts as this."""

DRAWS = 200
EXAMPLES = 200
"""Binomial draws of the honest figure, and examples behind each score in them."""

RESAMPLES = 2000

Report = dict[str, Any]

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What a strategy did with the queries of a regime, by task in order.

    ``chosen``: (queries,) columns of the adapters. ``posterior``: (queries, T). ``typicality``: (queries,).
    """

    chosen: list[NDArray[np.intp]]
    posterior: list[Floats]
    typicality: list[Floats]


def main(
    flan: Annotated[Path, typer.Option(help="Folder with the FLAN data.")],
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of draws and resamples.")] = 0,
) -> None:
    """Routes real queries, judged by the scores that adapters really had on their tasks.

    Without affinity.csv, as `make flan` leaves the folder, only by the tasks that are found.
    """
    started = time.perf_counter()
    report = routing(read_flan(flan, needs_scores=False), flan, seed)
    report |= {"machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.perf_counter() - started, 1)
    _print(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def routing(flan: Flan, directory: Path, seed: int) -> Report:
    """Returns the report; `paper_encoder` is in it where ``directory`` has that encoder's vectors.

    What is about scores, `single` among it, is left out where ``flan`` is not scored.
    """
    count = sum(map(len, flan.queries.values()))
    console.print("encoding", style="dim")
    ours = FlanPools(flan, embedded(flan, None))
    routers = {name: (ours, name) for name in ("default", "paper", "paper_tuned")}
    theirs = _paper_encoder(flan, directory)
    if theirs is not None:
        routers["paper_encoder"] = (theirs, "paper")
    found: dict[str, dict[str, Routed]] = {}
    for name, (pools, strategy) in routers.items():
        console.print(f"routing {count} queries: {name}", style="dim")
        found[name] = {regime: _routed(pools, regime, strategy) for regime in REGIMES}
    console.print("churn: each task comes to the others", style="dim")
    report: Report = {
        "queries": count,
        "churn": churn_figures(flan, ours),
        "strategies": {name: _figures(flan, routed) for name, routed in found.items()},
    }
    if not flan.is_scored:
        return report
    for name, routed in found.items():
        report["strategies"][name] |= _judged(flan, routed)
    report["strategies"] |= _baselines(flan, ours)
    report["honest_non_ood"] = round(_honest(flan, found["default"]["non_ood"], seed), 2)
    if theirs is not None:
        report["default_minus_paper_encoder"] = {
            regime: _interval(flan, found["default"][regime], found["paper_encoder"][regime], seed)
            for regime in REGIMES
        }
    return report


def _paper_encoder(flan: Flan, directory: Path) -> FlanPools | None:
    files = [directory / f"paper_encoder_{part}.npy" for part in ("validation", "queries")]
    if not all(file.exists() for file in files):
        return None
    validation, queries = (np.load(file).astype(np.float32) for file in files)
    return FlanPools(flan, by_task(flan, np.concatenate([validation, queries[flan.kept_queries]])))


def _routed(pools: FlanPools, regime: str, strategy: str) -> Routed:
    columns = {name: column for column, name in enumerate(pools.flan.tasks)}
    routed = Routed([], [], [])
    for _, decisions in pools.decisions(regime, strategy):
        posterior = np.zeros((len(decisions), len(columns)))
        for place, decision in enumerate(decisions):
            for match in decision.tasks:
                posterior[place, columns[match.task_id]] = match.probability
        routed.chosen.append(np.array([columns[one.best_single.adapter_id] for one in decisions]))
        routed.posterior.append(posterior)
        routed.typicality.append(np.array([one.typicality for one in decisions]))
    return routed


def _figures(flan: Flan, routed: Mapping[str, Routed]) -> dict[str, Any]:
    posterior = np.concatenate(routed["non_ood"].posterior)
    own = np.repeat(np.arange(len(flan.tasks)), [len(rows) for rows in routed["non_ood"].posterior])
    clusters = np.unique(np.array(flan.clusters), return_inverse=True)[1]
    order = np.argsort(-posterior, axis=1, kind="stable")
    usual = np.concatenate(routed["non_ood"].typicality)
    of_own = posterior[np.arange(len(own)), own]
    exact = {
        "top1": float((order[:, 0] == own).mean()),
        "top3": float((order[:, :3] == own[:, None]).any(axis=1).mean()),
        "cluster_top1": float((clusters[order[:, 0]] == clusters[own]).mean()),
        "log_loss": float(-np.log(np.maximum(of_own, LEAST)).mean()),
        "ece": calibration_error(posterior.max(axis=1), order[:, 0] == own),
        "auroc_unseen_task": auroc(usual, np.concatenate(routed["ood"].typicality)),
        "auroc_unseen_cluster": auroc(usual, np.concatenate(routed["unseen_cluster"].typicality)),
    }
    return {name: round(value, 4) for name, value in exact.items()}


def _judged(flan: Flan, routed: Mapping[str, Routed]) -> dict[str, Any]:
    scores = {regime: _scores(flan, each) for regime, each in routed.items()}
    aligned = dict(zip(flan.tasks, np.diag(flan.affinity).tolist(), strict=True))
    shares = {name: float(np.mean(each)) / aligned[name] for name, each in scores["non_ood"].items()}
    worst = min(shares, key=lambda name: shares[name])
    return {
        "single": {regime: round(flan.percent_of_oracle(each), 2) for regime, each in scores.items()},
        "worst_task": {"task": worst, "percent_of_own": round(100 * shares[worst], 1)},
    }


def _scores(flan: Flan, routed: Routed) -> dict[str, list[float]]:
    return {name: flan.affinity[row, routed.chosen[row]].tolist() for row, name in enumerate(flan.tasks)}


def calibration_error(confidence: Floats, is_right: Mask) -> float:
    """Returns the expected calibration error: bins' gaps of accuracy and confidence by their shares."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        inside = bins == number
        total += abs(float(is_right[inside].mean() - confidence[inside].mean())) * float(inside.mean())
    return total


def auroc(usual: Floats, unusual: Floats) -> float:
    """Returns the chance that a usual value is above an unusual one; ties count half."""
    values = np.concatenate([usual, unusual])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[: len(usual)].sum() - len(usual) * (len(usual) + 1) / 2
    return float(above / (len(usual) * len(unusual)))


def _baselines(flan: Flan, pools: FlanPools) -> dict[str, Any]:
    """What needs no router: the best all-round adapter, the best for the true task, and one at random."""

    def single(choose: Callable[[int, Mask], Floats]) -> dict[str, float]:
        found = {}
        for regime in REGIMES:
            scores = {}
            for row, name in enumerate(flan.tasks):
                tasks, adapters = pools.barred(row, regime)
                chosen = np.where(adapters, -1.0, choose(row, tasks)).argmax()
                scores[name] = [float(flan.affinity[row, chosen])] * len(flan.queries[name])
            found[regime] = round(flan.percent_of_oracle(scores), 2)
        return found

    at_random = {regime: random_scores(pools, regime) for regime in REGIMES}
    return {
        "constant": {"single": single(lambda row, tasks: flan.affinity[~tasks].mean(axis=0))},
        "task_oracle": {"single": single(lambda row, tasks: flan.affinity[row])},
        "random": {
            "single": {regime: round(flan.percent_of_oracle(each), 2) for regime, each in at_random.items()}
        },
    }


def churn_figures(flan: Flan, pools: FlanPools) -> Report:
    """Returns the share of queries whose adapter changes as a task comes, mean over tasks and worst.

    Counted are queries of tasks of other clusters, and under ``other_tasks`` those of all other tasks.
    """
    clusters = np.array(flan.clusters)
    own = np.repeat(np.arange(len(clusters)), [len(flan.queries[name]) for name in flan.tasks])
    unrelated, others, kept = [], [], []
    for row, before, after, stays in pools.arrivals():
        changed = np.array(before) != np.array(after)
        unrelated.append(float(changed[clusters[own] != clusters[row]].mean()))
        others.append(float(changed[own != row].mean()))
        kept.append(stays)
    return {
        "mean": round(float(np.mean(unrelated)), 5),
        "worst": round(max(unrelated), 5),
        "worst_task": flan.tasks[int(np.argmax(unrelated))],
        "other_tasks": {"mean": round(float(np.mean(others)), 5), "worst": round(max(others), 5)},
        "constants_kept": round(float(np.mean(kept)), 3),
    }


def _honest(flan: Flan, routed: Routed, seed: int) -> float:
    """Returns Non-OOD with scores drawn anew: one draw chooses among adapters, another one judges."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        choosing, judging = random.binomial(EXAMPLES, flan.affinity, (2, *flan.affinity.shape)) / EXAMPLES
        best = choosing.max(axis=1, keepdims=True)
        shares = np.divide(choosing, best, out=np.zeros_like(choosing), where=best > 0)
        scores = {
            name: judging[row, (routed.posterior[row] @ shares).argmax(axis=1)].tolist()
            for row, name in enumerate(flan.tasks)
        }
        found.append(replace(flan, affinity=judging).percent_of_oracle(scores))
    return float(np.mean(found))


def _interval(flan: Flan, ours: Routed, theirs: Routed, seed: int) -> list[float]:
    """Returns the 95 % interval of the difference in % of Oracle, tasks resampled in pairs."""
    random = np.random.default_rng(seed)
    clusters = np.unique(np.array(flan.clusters), return_inverse=True)[1]
    sizes = np.array([len(rows) for rows in ours.chosen])
    gained, lost = (
        np.array([sum(scores) for scores in _scores(flan, each).values()]) for each in (ours, theirs)
    )
    aligned = np.diag(flan.affinity) * sizes
    differences = []
    for _ in range(RESAMPLES):
        chosen = random.integers(0, len(sizes), len(sizes))
        whole = np.bincount(clusters[chosen], aligned[chosen])
        part = np.bincount(clusters[chosen], (gained - lost)[chosen])
        differences.append(100 * float((part[whole > 0] / whole[whole > 0]).mean()))
    low, high = np.quantile(differences, (0.025, 0.975))
    return [round(float(low), 2), round(float(high), 2)]


def _print(report: Report, out: Console) -> None:
    regimes = REGIMES if "honest_non_ood" in report else ()
    title = f"{report['queries']} queries" + (", % of Oracle by regime" if regimes else "")
    table = Table(title=title, title_justify="left", box=None)
    for column in ("", *regimes, "top1", "top3", "cluster", "loss", "ECE"):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, row in report["strategies"].items():
        cells = [f"{row['single'][regime]:.1f}" for regime in regimes]
        if "top1" in row:
            cells += [f"{100 * row[key]:.1f}" for key in ("top1", "top3", "cluster_top1")]
            cells += [f"{row['log_loss']:.2f}", f"{row['ece']:.3f}"]
        table.add_row(name, *cells)
    out.print(table)
    for name, row in report["strategies"].items():
        if "top1" in row:
            out.print(
                f"{name}: AUROC of typicality {row['auroc_unseen_task']:.2f} (own task barred), "
                f"{row['auroc_unseen_cluster']:.2f} (own cluster barred)"
            )
        if "worst_task" in row:
            worst = row["worst_task"]
            out.print(f"{name}: worst task {worst['task']} at {worst['percent_of_own']} % of its own adapter")
    if "honest_non_ood" in report:
        out.print(f"default, Non-OOD by scores drawn anew: {report['honest_non_ood']}")
    churn = report["churn"]
    out.print(
        f"churn as a task comes: {100 * churn['mean']:.2f} % of the queries of other clusters, at worst "
        f"{100 * churn['worst']:.2f} % ({churn['worst_task']}); of all other tasks "
        f"{100 * churn['other_tasks']['mean']:.2f} %; constants kept {100 * churn['constants_kept']:.0f} %"
    )
    for regime, (low, high) in report.get("default_minus_paper_encoder", {}).items():
        out.print(f"default less the paper's router on its own encoder, {regime}: {low:+.1f} to {high:+.1f}")
    out.print(f"{report['seconds']} s", style="dim")


if __name__ == "__main__":
    typer.run(main)
