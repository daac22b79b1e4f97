"""What a strategy is asked, what it answers, and the steps that strategies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.bm25 import Lexicon, Terms, terms_of
from lorauter.routing.compiled import CompiledPool, CompiledSet
from lorauter.routing.fitting import TYPICALITY_LEVELS, known_name, typicality_name
from lorauter.routing.lexical import term_frequencies
from lorauter.routing.model import Profile, Vector

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

_NAMES = {
    of: tuple(typicality_name(level, of) for level in TYPICALITY_LEVELS) for of in ("similarity", "score")
}

NEIGHBOURS = 3
"""How many measured tasks stand in for one that was not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query: its unit vector (d,) and, for strategies that read words, its routed text or its ``terms``.

    ``known`` are its lexical scores by one lexicon.
    """

    vector: Vector
    text: str = ""
    terms: Terms | None = None
    known: tuple[Lexicon, Floats] | None = None

    def words(self) -> Terms:
        """Returns the terms that were given, else those of the text."""
        return self.terms if self.terms is not None else terms_of(term_frequencies(self.text))

    def prepared(self, lexicon: Lexicon) -> Query:
        """Returns the query with all that needs no vector worked out, while that is still being encoded."""
        terms = self.words()
        return replace(self, terms=terms, known=(lexicon, lexicon.scores(terms)))

    def lexical_scores(self, lexicon: Lexicon) -> Floats:
        """Returns lexicon.scores() of the query's words, worked out before or now."""
        if self.known is not None and self.known[0] is lexicon:
            return self.known[1]
        return lexicon.scores(self.words())


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A query in a pool of T tasks and A arms, and which of them take part: (T,) and (A,) masks.

    At least one task takes part. ``direction`` is the query's vector at length 1 (or 0).
    """

    pool: CompiledPool
    query: Query
    direction: Vector
    tasks: Mask
    arms: Mask

    def measured(self) -> Mask:
        """Returns (T,), which tasks have a measured arm that takes part."""
        columns = self.pool.columns
        if self.arms is self.pool.all_arms:
            return self.pool.measured
        found: Mask = np.any((columns >= 0) & self.arms[columns], axis=1)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Grounds:
    """Which tasks a choice rests on, for whoever explains it.

    ``rows`` (D,) are the tasks whose shares make the utilities, and ``say`` (D,) what each counts, in all 1.
    ``best`` (K,), K ≤ D: the arm that each of the first K tasks gives its weight to, -1 where it has none;
    empty where one arm has all the weight for its utility. ``shares`` (D, A): where others count than those
    that were measured. ``source``: the place in ``rows`` of the task that all weight comes from, -1 where
    there is no such.
    """

    rows: Rows
    say: Floats
    best: Rows
    shares: Floats | None = None
    source: int = -1

    def shares_of(self, pool: CompiledPool, arm: int) -> Floats:
        """Returns (D,), the arm's share of each task's best score; 0 where it has none."""
        if self.shares is not None:
            own: Floats = self.shares[:, arm]
            return own
        shares: Floats = np.where(pool.columns[self.rows] == arm, pool.shares[self.rows], 0.0).sum(axis=1)
        return shares


SERVED = "served"
"""Why a composition is served that is."""


@dataclass(frozen=True, slots=True, eq=False)
class Considered:
    """A composition that was measured on a deciding task: ``place`` among those, ``task`` its row.

    ``utility``: its expected share of the best single score, above 1 where it is expected to do better.
    ``reason``: SERVED, or why it is not.
    """

    composition: CompiledSet
    place: int
    task: int
    utility: float
    reason: str

    @property
    def served(self) -> bool:
        """Whether it is what is to be served."""
        return self.reason == SERVED


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a strategy answers.

    ``probabilities`` (T,) sum to 1 over the tasks that take part. ``weights`` (A,) are ≥ 0 and sum to 1, or
    are all 0 where no arm was measured. ``single`` is the row of the best single arm, -1 where there is none.
    ``utilities`` (A,) are expected shares of the best score, 0..1; ``known`` (A,) says which arms have one.
    ``constants`` are those used, by name. ``grounds`` are the tasks behind it. ``considered`` are measured
    compositions; the weights are those of the one that is to be served, if there is one.
    """

    probabilities: Floats
    weights: Floats
    single: int
    utilities: Floats
    known: Mask
    typicality: float
    constants: Mapping[str, float]
    grounds: Grounds
    considered: tuple[Considered, ...] = ()

    @property
    def composition(self) -> Considered | None:
        """The measured composition that is to be served; None where there is none."""
        return next((each for each in self.considered if each.served), None)


class Strategy(Protocol):
    """A rule that answers questions; it holds no state, so threads may share it."""

    name: str
    """What callers select it by."""

    reads_words: bool
    """Whether it asks for a query's lexical scores."""

    def choose(self, question: Question, max_adapters: int) -> Choice:
        """Answers ``question``; the weighted set is truncated by the caller, not here."""
        ...


def nearest(similarities: Floats, mask: Mask, count: int) -> Rows:
    """Returns the rows of the ``count`` largest similarities under ``mask``, best first, ties by row."""
    rows = best_rows(similarities, mask, count)
    return rows[np.argsort(-similarities[rows], kind="stable")][:count]


def best_rows(values: Floats, mask: Mask, count: int) -> Rows:
    """Returns, ascending, the rows of the ``count`` largest values under ``mask``, and of all that tie."""
    rows = np.flatnonzero(mask)
    if len(rows) <= count:
        return rows
    allowed = values[rows]
    least = float(np.partition(allowed, len(rows) - count)[len(rows) - count])
    return rows[allowed >= least]


def softmax(values: Floats, temperature: float) -> Floats:
    """Returns exp(values / temperature), scaled to sum to 1."""
    mass = np.exp((values - values.max()) / temperature)
    scaled: Floats = mass / mass.sum()
    return scaled


def shares_of(question: Question, rows: Rows, arms: Mask) -> tuple[Floats, Mask]:
    """Returns (rows, A) shares of each task's best score and which of them were measured, under ``arms``."""
    columns = question.pool.columns[rows]
    measured = (columns >= 0) & arms[columns]
    places = np.nonzero(measured)
    shares = np.zeros((len(rows), len(arms)))
    known = np.zeros(shares.shape, dtype=bool)
    shares[places[0], columns[places]] = question.pool.shares[rows][places]
    known[places[0], columns[places]] = True
    return shares, known


def filled_shares_of(question: Question, rows: Rows, arms: Mask, temperature: float) -> tuple[Floats, Mask]:
    """Like shares_of, but a task without a measured arm takes its nearest measured tasks' shares.

    Those are averaged by the softmax of their similarity to the task. If no task has a measured arm, the
    row stays unknown.
    """
    shares, known = shares_of(question, rows, arms)
    lacking = np.flatnonzero(~known.any(axis=1))
    if len(lacking):
        columns = question.pool.columns
        measured = question.tasks & ((columns >= 0) & arms[columns]).any(axis=1)
        if measured.any():
            for place in lacking:
                likeness = cosines(question.pool, question.pool.directions[rows[place]])
                near = nearest(likeness, measured, NEIGHBOURS)
                theirs, theirs_known = shares_of(question, near, arms)
                shares[place] = softmax(likeness[near], temperature) @ theirs
                known[place] = np.any(theirs_known, axis=0)
    return shares, known


def best_arms(question: Question, rows: Rows, shares: Floats, known: Mask) -> Rows:
    """Returns the best arm of each of ``rows``, -1 where none is known.

    Equal shares go to the base, then to the adapter that bears the task's name, then in the order of the
    task's affinities.
    """
    best = np.full(len(rows), -1, dtype=np.intp)
    for place, row in enumerate(rows):
        is_tied = known[place] & (shares[place] == shares[place].max(where=known[place], initial=-1))
        if is_tied.any():
            own_order = question.pool.columns[row]
            tied = [int(arm) for arm in own_order if arm >= 0 and is_tied[arm]]
            best[place] = _preferred(question, int(row), tied or np.flatnonzero(is_tied).tolist())
    return best


def best_measured_arms(question: Question, rows: Rows) -> Rows:
    """Returns best_arms() where shares are those that were measured and nothing else."""
    pool = question.pool
    best = np.full(len(rows), -1, dtype=np.intp)
    for place, row in enumerate(rows):
        known = zip(pool.columns[row].tolist(), pool.shares[row].tolist(), strict=True)
        taking_part = [(arm, share) for arm, share in known if arm >= 0 and question.arms[arm]]
        if taking_part:
            most = max(share for _, share in taking_part)
            best[place] = _preferred(question, int(row), [arm for arm, share in taking_part if share == most])
    return best


def _preferred(question: Question, row: int, tied: Sequence[int]) -> int:
    own = question.pool.arm_rows.get(question.pool.tasks[row].task_id, ())
    return 0 if 0 in tied else next((arm for arm in tied if arm in own), tied[0])


def weights_of(best: Rows, probabilities: Floats, arm_count: int) -> Floats:
    """Returns (A,) weights: each task gives its probability to its best arm, if it has one; they sum to 1."""
    given = best >= 0
    weights = np.bincount(best[given], probabilities[given], minlength=arm_count)
    total = weights.sum()
    return weights / total if total > 0 else np.zeros(arm_count)


def cosines(pool: CompiledPool, direction: Vector, rows: Rows | None = None) -> Floats:
    """Returns float64, the cosine of each centroid, or of those of ``rows``, and a unit ``direction``."""
    directions = pool.directions if rows is None else pool.directions[rows]
    return np.clip((directions @ direction).astype(np.float64), -1.0, 1.0)


def typicality_of(profile: Profile, best: float, of: str = "similarity") -> float:
    """Returns the share of known queries whose best similarity (or score) is below this one's, 0..1.

    Known queries are the n validation examples, each scored without itself; between the quantiles that the
    profile keeps it is interpolated. The query counts as one of them, as in conformal prediction (Vovk et
    al., "Algorithmic Learning in a Random World", 2005): of queries like the known ones at most a share α has
    α or less, however few those are. 1.0 where the profile keeps none: nothing is known to be untypical.
    """
    kept = [profile.constants.get(name) for name in _NAMES[of]]
    quantiles = [value for value in kept if value is not None]
    if len(quantiles) < len(TYPICALITY_LEVELS):
        return 1.0
    below = float(np.interp(best, quantiles, TYPICALITY_LEVELS))
    count = profile.constants.get(known_name(of))
    return below if count is None else (1.0 + (count - 1.0) * below) / (count + 1.0)
