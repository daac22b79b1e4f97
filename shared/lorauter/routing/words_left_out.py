"""Lexical scores of many examples at once, each left out of its own task's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.bm25 import Lexicon, Terms, find_terms, idf_of, weigh

_CELLS = 1 << 23
"""Most (term, task) weights that are laid out at a time."""

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """A text left out: ``own``, its task's score; ``values`` to multiply the weights of ``places`` by."""

    own: float
    places: Places
    values: NDArray[np.float32]


def lexical_scores(words: Lexicon, owners: Places, totals: Sequence[Terms], texts: Sequence[Terms]) -> Floats:
    """Returns (m, T), the scores of m texts with each task as if the text's own did not hold it.

    ``owners`` (m,) are the texts' tasks, ``totals`` the T tasks' terms. Terms that only the text brought to
    its task are then rarer, which changes what they weigh elsewhere; what it changes in lengths, of tasks and
    on average, is left aside.
    """
    places = _places_by_task(words, owners)
    left = [
        _left_out(words, places[own], totals[own], text)
        for own, text in zip(owners.tolist(), texts, strict=True)
    ]
    scores = _products(words, left)
    scores[np.arange(len(left)), owners] = [each.own for each in left]
    return scores


def _places_by_task(words: Lexicon, owners: Places) -> Mapping[int, Places]:
    """Returns where the terms of these tasks stand in the lexicon, ascending as the tasks' own ids do."""
    wanted = np.zeros(words.tasks, dtype=bool)
    wanted[owners] = True
    used = wanted[words.rows]
    places = np.repeat(np.arange(len(words.ids)), np.diff(words.starts))[used]
    keys = (words.rows[used].astype(np.uint64) << np.uint64(32)) | places.astype(np.uint64)
    keys.sort()
    rows, places = (keys >> np.uint64(32)).astype(np.intp), (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)
    tasks = np.flatnonzero(wanted)
    starts, ends = np.searchsorted(rows, tasks), np.searchsorted(rows, tasks, "right")
    return {int(t): places[start:end] for t, start, end in zip(tasks, starts, ends, strict=True)}


def _left_out(words: Lexicon, own_places: Places, total: Terms, text: Terms) -> _Left:
    counts = total.counts.copy()
    held_at, held = find_terms(total.ids, text.ids)
    counts[held_at] -= text.counts[held]
    counts[counts <= 1e-6] = 0.0
    if len(held) == len(text.ids):
        places, known = own_places[held_at], held
    else:
        places, known = find_terms(words.ids, text.ids)
    is_held, is_gone = np.zeros((2, len(text.ids)), dtype=np.intp)
    is_held[held] = 1
    is_gone[held] = counts[held_at] == 0.0
    users = words.starts[places + 1] - words.starts[places]
    values = np.sqrt(text.counts[known])
    used_by = users - is_gone[known]
    length = max(float(np.linalg.norm(values[used_by > 0])), 1e-12)
    weights = weigh(counts, words.idf[own_places], float(counts.sum()), words.mean_length)
    own = float(weights[held_at] @ np.sqrt(text.counts[held]))
    elsewhere = users > is_held[known]
    values = values * idf_of(words.tasks, used_by) / words.idf[places] / length
    return _Left(
        own=own / length / max(float(np.linalg.norm(weights)), 1e-12),
        places=places[elsewhere],
        values=values[elsewhere].astype(np.float32),
    )


def _products(words: Lexicon, left: Sequence[_Left]) -> Floats:
    """Returns (m, T), the sums of value times weight; blocks of terms are laid out over all tasks."""
    scores = np.zeros((len(left), words.tasks))
    sizes = [len(each.places) for each in left]
    if not sum(sizes):
        return scores
    terms, slots = np.unique(np.concatenate([each.places for each in left]), return_inverse=True)
    of_text = np.split(slots, np.cumsum(sizes)[:-1])
    block = max(1, _CELLS // words.tasks)
    for start in range(0, len(terms), block):
        weights = _laid_out(words, terms[start : start + block])
        for row, each in enumerate(left):
            low, high = np.searchsorted(of_text[row], (start, start + block))
            scores[row] += each.values[low:high] @ weights[of_text[row][low:high] - start]
    return scores


def _laid_out(words: Lexicon, terms: Places) -> NDArray[np.float32]:
    starts, ends = words.starts[terms], words.starts[terms + 1]
    sizes = ends - starts
    chosen = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    weights = np.zeros((len(terms), words.tasks), np.float32)
    weights[np.repeat(np.arange(len(terms)), sizes), words.rows[chosen]] = words.weights[chosen]
    return weights
