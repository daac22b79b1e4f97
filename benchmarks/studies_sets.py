"""Fewer examples, wordings that no validation set has, other vectors: what the validation sets are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import Embedded
from benchmarks.routing import calibration_error
from benchmarks.studies_channels import PAPER, PAPER_TUNED
from benchmarks.studies_lab import DEFAULT, Design, Mask, Rows, Texts, Words, fit, whitenings
from benchmarks.studies_runs import (
    QUERIES,
    Outcome,
    Run,
    outcome,
    paired,
    paired_means,
    percent,
    run,
    served,
    table,
)
from lorauter.encoder import DEFAULT_ENCODER, Encoder
from lorauter.encoder.encoder import encoder_directory

SIZES = (5, 10, 20)
SEEDS = 3
PARTS = 8
"""Of the templates, in the template-disjoint split: an eighth is away at a time."""

FEWEST = 5
"""Examples that a task must keep for its queries to be asked."""

HEAD = 254
"""Tokens of a text that the encoder reads, without its own two."""

COMPARED = (DEFAULT, PAPER, PAPER_TUNED)
Report = dict[str, float]


def by_examples(
    flan: Flan, validation: Texts, queries: Texts, shares: Floats
) -> dict[str, dict[str, Report]]:
    """Returns by examples a task and design the figures on queries, means over seeds.

    ``whitened``: the share of the seeds in which whitening was on. ``ece``: calibration on queries.
    """
    found: dict[str, dict[str, Report]] = {}
    for size in SIZES:
        seeds = range(SEEDS if size < max(SIZES) else 1)
        parts = [validation.only(some_of(validation.owners, size, seed)) for seed in seeds]
        found[str(size)] = {
            design.name: _mean([_figures(flan, design, part, queries, shares) for part in parts])
            for design in COMPARED
        }
    return found


def some_of(owners: Rows, count: int, seed: int) -> Mask:
    """Returns (n,), ``count`` texts of each task drawn at random, all where there are no more."""
    places = np.random.default_rng(seed).random(len(owners))
    order = np.lexsort((places, owners))
    ranks = np.empty(len(owners), dtype=np.intp)
    ranks[order] = np.arange(len(owners)) - np.searchsorted(owners, owners[order])
    return ranks < count


def _figures(flan: Flan, design: Design, known: Texts, queries: Texts, shares: Floats) -> Report:
    runs = run(flan, design, known, queries)
    plain = runs[QUERIES, "non_ood"]
    fitted = fit(design, known)
    return {
        **table(flan, runs, shares, QUERIES),
        "ece": calibration_error(plain.posterior.max(axis=1), plain.right > 0),
        "whitened": float(getattr(fitted.channels[0], "shrinkage", 1.0) < 1.0),
        "flagged_0.05": float((plain.typicality <= 0.05).mean()),
    }


def _mean(figures: Sequence[Report]) -> Report:
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


@dataclass(frozen=True, slots=True)
class Away:
    """What was found with templates away and with as many examples away at random.

    ``figures`` by design and "templates", "at random" or "all there"; ``differences``, by design, of the
    first less the second in top1 (points), log_loss, % of Oracle and typicality, with standard errors over
    tasks; ``beside_default``, with templates away, of each design less `default`. ``queries`` were asked,
    with ``examples`` left a task on average.
    """

    queries: int
    examples: float
    figures: dict[str, dict[str, Report]]
    differences: dict[str, dict[str, tuple[float, float]]]
    beside_default: dict[str, dict[str, tuple[float, float]]]


UNSEEN_WORDINGS = (
    *COMPARED,
    Design("dense alone", whitenings()),
    Design("words alone", ((Words(),),)),
    Design("weights fitted by left-out templates", DEFAULT.alternatives, by_template=True),
)


def without_templates(flan: Flan, validation: Texts, queries: Texts, shares: Floats) -> Away:
    """Routes queries in wordings that no validation set has.

    An eighth of the templates at a time is taken out of all validation sets, and the queries written by them
    are asked; to compare, they are asked with as many examples of each task away that were drawn at random.
    """
    cuts = [_cut(validation, queries, part) for part in range(PARTS)]
    figures: dict[str, dict[str, Report]] = {}
    outcomes: dict[str, dict[str, Outcome]] = {}
    for design in UNSEEN_WORDINGS:
        whole = fit(design, validation)
        outcomes[design.name] = {
            "templates": _routed(flan, design, [(known, asked) for known, _, asked in cuts]),
            "at random": _routed(flan, design, [(known, asked) for _, known, asked in cuts]),
            "all there": _concatenated([outcome(flan, whole, asked) for _, _, asked in cuts]),
        }
        figures[design.name] = {
            name: _short(flan, asked, shares) for name, asked in outcomes[design.name].items()
        }
    default = outcomes[DEFAULT.name]["templates"]
    return Away(
        queries=len(default.own),
        examples=float(np.mean([len(known) / len(np.unique(known.owners)) for known, _, _ in cuts])),
        figures=figures,
        differences={
            name: _differences(flan, each["templates"], each["at random"], shares)
            for name, each in outcomes.items()
        },
        beside_default={
            name: _differences(flan, each["templates"], default, shares)
            for name, each in outcomes.items()
            if name != DEFAULT.name
        },
    )


def _cut(validation: Texts, queries: Texts, part: int) -> tuple[Texts, Texts, Texts]:
    """Returns what is known without some templates, as much drawn at random, and the queries of those."""
    kept = validation.templates % PARTS != part
    left = np.bincount(validation.owners[kept], minlength=int(validation.owners.max()) + 1)
    at_random = np.zeros(len(kept), dtype=bool)
    for task, count in enumerate(left):
        at_random |= (validation.owners == task) & some_of(validation.owners, int(count), part)
    asked = (queries.templates % PARTS == part) & (left[queries.owners] >= FEWEST)
    return validation.only(kept), validation.only(at_random), queries.only(asked)


def _routed(flan: Flan, design: Design, cuts: Sequence[tuple[Texts, Texts]]) -> Outcome:
    return _concatenated([outcome(flan, fit(design, known), asked) for known, asked in cuts])


def _concatenated(parts: Sequence[Outcome]) -> Outcome:
    own = np.concatenate([part.own for part in parts])
    order = np.argsort(own, kind="stable")
    return Outcome(
        own[order],
        np.concatenate([part.posterior for part in parts])[order],
        np.concatenate([part.typicality for part in parts])[order],
        parts[0].deciding,
    )


def _short(flan: Flan, asked: Outcome, shares: Floats) -> Report:
    return {
        "top1": 100 * float(asked.right.mean()),
        "log_loss": float(asked.log_loss.mean()),
        "non_ood": percent(flan, asked.own, served(flan, asked, "non_ood", shares)),
        "typicality": float(asked.typicality.mean()),
        "flagged_0.05": float((asked.typicality <= 0.05).mean()),
        "ece": calibration_error(asked.posterior.max(axis=1), asked.right > 0),
    }


def _differences(
    flan: Flan, ours: Outcome, theirs: Outcome, shares: Floats
) -> dict[str, tuple[float, float]]:
    own = ours.own
    scores = [served(flan, each, "non_ood", shares) for each in (ours, theirs)]
    return {
        "top1": paired_means(own, 100 * ours.right, 100 * theirs.right),
        "log_loss": paired_means(own, ours.log_loss, theirs.log_loss),
        "non_ood": paired(flan, own, scores[0], scores[1]),
        "typicality": paired_means(own, ours.typicality, theirs.typicality),
    }


def heads(embedded: Embedded, flan: Flan, encoder: Encoder) -> tuple[Embedded, Mapping[str, Mask]]:
    """Returns the vectors of the texts' first 254 tokens, and which queries are longer than that, by task."""
    cut = [_cut_off(each) for each in (flan.validation, flan.queries)]
    sides = [
        {task: _encoded(texts, old[task], encoder) for task, texts in each.items()}
        for each, old in zip(cut, (embedded.validation, embedded.queries), strict=True)
    ]
    is_long = {task: np.array([text is not None for text in texts]) for task, texts in cut[1].items()}
    return Embedded(sides[0], sides[1]), is_long


def _cut_off(inputs: Mapping[str, Sequence[str]]) -> dict[str, list[str | None]]:
    """Returns the first 254 tokens of each text by task, None where it has no more."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder_directory(DEFAULT_ENCODER) / "tokenizer.json"))
    tokenizer.no_truncation()
    found = {}
    for task, texts in inputs.items():
        offsets = [tokenizer.encode(text, add_special_tokens=False).offsets for text in texts]
        found[task] = [
            text[: spans[HEAD - 1][1]] if len(spans) > HEAD else None
            for text, spans in zip(texts, offsets, strict=True)
        ]
    return found


def _encoded(
    texts: Sequence[str | None], vectors: NDArray[np.float32], encoder: Encoder
) -> NDArray[np.float32]:
    """Returns the vectors with those of the texts that are not None made anew."""
    rows = [row for row, text in enumerate(texts) if text is not None]
    made = vectors.copy()
    if rows:
        made[rows] = encoder.encode([text for text in texts if text is not None])
    return made


def long_queries(flan: Flan, whole: Run, head: Run, is_long: Mask, shares: Floats) -> dict[str, Report]:
    """Returns top1 (points) and % of Oracle of the long queries, read at both ends and at the head alone."""
    found: dict[str, Report] = {}
    for name, each in (("both ends", whole), ("head alone", head)):
        asked = each[QUERIES, "non_ood"]
        part = Outcome(asked.own[is_long], asked.posterior[is_long], asked.typicality[is_long])
        found[name] = _short(flan, part, shares)
    return found
