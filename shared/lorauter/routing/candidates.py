"""Candidate search: what to ask an index for, and a pool restricted to what it found.

An index holds raw centroids and raw term frequencies, which stay as they are when a profile changes. Of the
whitened product (q - μ)ᵀ P (c - μ) only P (q - μ) depends on the query, so that is what a search by inner
product with the raw centroids c asks for; idf is put on the query's terms likewise. Both leave out how long a
task's vectors are, so what is found is scored again, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.bm25 import Ids, Lexicon, Terms, find_terms
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.decision import Decision
from lorauter.routing.fitting import UNTYPICAL_BELOW
from lorauter.routing.model import Vector
from lorauter.routing.representation import unit

Rows = NDArray[np.intp]

CANDIDATES = 256
"""Tasks that each search of an index returns."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What to search an index with, each by inner product.

    ``dense``: float32 (d,) vectors against raw centroids, one search each: the whitened product, which the
    strategy ``default`` scores by, and the cosine of the others. ``terms``: against raw term frequencies.
    """

    dense: tuple[Vector, ...]
    terms: Terms


def probe_of(pool: CompiledPool, vector: Vector, text: Terms) -> Probe:
    """Returns what finds the candidates of a query, given its vector (d,) and terms; terms may be none."""
    direction = unit(np.asarray(vector, dtype=np.float32))
    apart = direction - pool.mean
    if pool.whitener is not None:
        apart = pool.whitener @ (apart @ pool.whitener)
    places, known = find_terms(pool.lexicon.ids, text.ids)
    values = np.sqrt(text.counts[known]) * pool.lexicon.idf[places]
    return Probe((apart, direction), Terms(text.ids[known], values))


def rows_of(pool: CompiledPool, found: Iterable[tuple[str, str]]) -> Rows:
    """Returns, ascending, the rows of the found tasks, by id and address, that are this pool's very ones."""
    rows = {
        row
        for task_id, address in found
        if (row := pool.task_rows.get(task_id)) is not None and pool.tasks[row].address == address
    }
    return np.array(sorted(rows), dtype=np.intp)


def restricted(pool: CompiledPool, rows: Rows, text: Terms) -> CompiledPool:
    """Returns the pool with only the tasks of ``rows``, which ascend, and only the words of ``text``.

    What is left scores as in the whole pool: mean, whitening, idf and arms stay those of all tasks.
    """
    tasks = tuple(pool.tasks[row] for row in rows.tolist())
    carriers: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        for tag in task.tags:
            carriers.setdefault(tag, []).append(row)
    return replace(
        pool,
        tasks=tasks,
        directions=pool.directions[rows],
        whitened=pool.whitened[rows],
        lexicon=_restricted_lexicon(pool.lexicon, rows, text.ids),
        all_tasks=pool.all_tasks[rows],
        columns=pool.columns[rows],
        measured=pool.measured[rows],
        scores=pool.scores[rows],
        shares=pool.shares[rows],
        sets=tuple(pool.sets[row] for row in rows.tolist()),
        task_rows={task.task_id: row for row, task in enumerate(tasks)},
        carriers={tag: np.array(held, dtype=np.intp) for tag, held in carriers.items()},
    )


def suffices(few: CompiledPool, decision: Decision) -> bool:
    """Returns whether a decision on ``few``, the candidates of a pool, needs none of its other tasks.

    It does where no candidate says what to serve, and where the pool's policy gives an untypical query to
    what does best over all tasks.
    """
    if decision.best_single.is_base and decision.expected_utility == 0:
        return False
    limit = few.profile.constants.get("untypical_below", UNTYPICAL_BELOW)
    return few.untypical_policy != "ALL_ROUND" or decision.typicality >= limit


def _restricted_lexicon(lexicon: Lexicon, rows: Rows, wanted: Ids) -> Lexicon:
    """Returns the lexicon of these rows and these words; idf and lengths are those of all tasks."""
    places, _ = find_terms(lexicon.ids, wanted)
    starts, sizes = lexicon.starts[places], lexicon.starts[places + 1] - lexicon.starts[places]
    # the postings of all words, one after the other, and which word each is of
    words = np.repeat(np.arange(len(places)), sizes)
    chosen = np.arange(len(words)) + (starts - np.cumsum(sizes) + sizes)[words]
    at = np.full(lexicon.tasks, -1, dtype=np.intp)
    at[rows] = np.arange(len(rows))
    owners = at[lexicon.rows[chosen]]
    kept = np.flatnonzero(owners >= 0)
    held = np.bincount(words[kept], minlength=len(places))
    return replace(
        lexicon,
        tasks=len(rows),
        ids=lexicon.ids[places],
        starts=np.concatenate([[0], np.cumsum(held)]).astype(np.intp),
        rows=owners[kept],
        weights=lexicon.weights[chosen[kept]],
        idf=lexicon.idf[places],
    )
