"""A laboratory for routing: posteriors over tasks of any design, fitted on any part of the data.

It fits like lorauter.routing, but by folds instead of leaving single examples out, so that any channel can
take part; benchmarks.studies prints how near the two are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse  # type: ignore[import-untyped]

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import Embedded
from benchmarks.studies_templates import templates_of
from lorauter.routing.lexical import tokens
from lorauter.routing.posterior import SHRINKAGES
from lorauter.routing.representation import MAX_TERMS

FOLDS = 5
CHARACTERS = (3, 4, 5)
RIDGE = 1e-4

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
Counts = Any
"""A sparse (n, V) matrix of counts, which scipy does not type."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """N texts: ``owners`` (N,) rows of their tasks; unit ``vectors`` (N, d); ``words``, counts (N, V) of runs
    of 1 to 3 tokens; ``characters``, counts (N, W) of runs of 3 to 5; ``templates`` (N,), see
    benchmarks.studies_templates.
    """

    owners: Rows
    vectors: Floats
    words: Counts
    characters: Counts
    templates: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The texts at ``rows`` (n,) of a corpus, ascending by task; the same ones are the same object, so that
    what was found out of them is kept. Attributes are those of the corpus, at these rows.
    """

    corpus: Corpus
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)[self.rows]

    def only(self, mask: Mask) -> Texts:
        """Returns the texts under ``mask`` (n,)."""
        return _texts(self.corpus, self.rows[mask].tobytes())


@lru_cache(maxsize=2048)
def _texts(corpus: Corpus, rows: bytes) -> Texts:
    return Texts(corpus, np.frombuffer(rows, dtype=np.intp))


class Channel(Protocol):
    """Scores of texts for tasks; equal channels give equal scores."""

    def __call__(self, known: Texts, asked: Texts) -> Floats:
        """Returns (asked, T): the tasks are those of ``known``, in order."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Design:
    """A posterior softmax(Σ weight · channel): the ``alternatives`` are channels to choose from by loss.

    ``by_template``: a held-out text takes all texts of its template with it. ``weights`` are fitted if there
    are none. Only the likeliest ``listed`` tasks have a probability, and the likeliest ``deciding`` a say in
    what is served, if these are not 0.
    """

    name: str
    alternatives: tuple[tuple[Channel, ...], ...]
    by_template: bool = False
    weights: tuple[float, ...] = ()
    listed: int = 0
    deciding: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A ``design`` fitted on ``known`` texts: ``tasks`` (T,), ``channels`` with ``weights``; ``best`` (m,),
    the best scores of the held-out texts, in ascending order; ``loss``, their mean log-loss.
    """

    design: Design
    tasks: Rows
    known: Texts
    channels: tuple[Channel, ...]
    weights: Floats
    best: Floats
    loss: float

    def scores(self, asked: Texts) -> Floats:
        """Returns (asked, T), the logarithm of each task's probability, but for a constant."""
        return sum_of(self.weights, [scores_of(channel, self.known, asked) for channel in self.channels])

    def typicality(self, scores: Floats) -> Floats:
        """Returns (n,), the share of held-out texts whose best score is below a text's: see conformal()."""
        return conformal(self.best, scores.max(axis=1))


@lru_cache(maxsize=4096)
def scores_of(channel: Channel, known: Texts, asked: Texts) -> Floats:
    """Returns a channel's scores, which are kept."""
    return channel(known, asked)


def conformal(known: Floats, asked: Floats) -> Floats:
    """Returns (n,) p-values (1 + #{known ≤ asked}) / (1 + #known) of ``asked`` scores; ``known`` ascends.

    At most α of exchangeable queries have a value of α or less (Vovk, Gammerman and Shafer, 2005).
    """
    values: Floats = (1.0 + np.searchsorted(known, asked, side="right")) / np.float64(1 + len(known))
    return values


def sum_of(weights: Floats, channels: Sequence[Floats]) -> Floats:
    """Returns Σ weight · channel."""
    total: Floats = np.tensordot(weights, np.stack(channels), axes=1)
    return total


def softmax(scores: Floats) -> Floats:
    """Returns probabilities by row."""
    mass = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = mass / mass.sum(axis=1, keepdims=True)
    return shares


def fit(design: Design, known: Texts) -> Fitted:
    """Fits weights, at least 0, of the least log-loss over texts held out fold by fold."""
    tasks = np.unique(known.owners)
    folds = _folds(known, design.by_template)
    cuts = [(known.only(folds != fold), folds == fold) for fold in np.unique(folds[folds >= 0])]
    own = np.searchsorted(tasks, known.owners[folds >= 0])
    made: dict[Channel, Floats] = {}
    found: Fitted | None = None
    for channels in design.alternatives:
        for channel in channels:
            if channel not in made:
                made[channel] = _held_out(channel, known, cuts, len(tasks))[folds >= 0]
        stacked = [made[channel] for channel in channels]
        weights, loss = _least_loss(stacked, own) if not design.weights else (np.array(design.weights), 0.0)
        if found is None or loss < found.loss - 1e-9:
            best = np.sort(sum_of(weights, stacked).max(axis=1))
            found = Fitted(design, tasks, known, channels, weights, best, loss)
    assert found is not None
    return found


def _folds(known: Texts, by_template: bool) -> Rows:
    """Returns (n,) the fold in which each text is held out, -1 where its task would vanish with it."""
    folds = np.full(len(known), -1)
    for task in np.unique(known.owners):
        rows = np.flatnonzero(known.owners == task)
        numbers = (known.templates[rows] if by_template else np.arange(len(rows))) % FOLDS
        if len(np.unique(numbers)) > 1:
            folds[rows] = numbers
    return folds


def _held_out(channel: Channel, known: Texts, cuts: Sequence[tuple[Texts, Mask]], tasks: int) -> Floats:
    """Returns (n, T) scores of texts, each by a fit of the rest; 0 for those that are in no cut."""
    scores = np.zeros((len(known), tasks))
    for rest, held in cuts:
        scores[held] = scores_of(channel, rest, known.only(held))
    return scores


def _least_loss(channels: Sequence[Floats], own: Rows) -> tuple[Floats, float]:
    """Returns weights (channels,) and their mean log-loss, ridged; convex, so the least is found."""
    scales = np.array([max(float(channel.std()), 1e-9) for channel in channels])
    scaled = np.stack(channels) / scales[:, None, None]
    rows = np.arange(len(own))
    right = scaled[:, rows, own]

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = np.tensordot(weights, scaled, axes=1)
        top = scores.max(axis=1)
        mass = np.exp(scores - top[:, None])
        total = mass.sum(axis=1)
        value = float(np.mean(np.log(total) + top - scores[rows, own])) + RIDGE * float(weights @ weights)
        means = (scaled * (mass / total[:, None])).sum(axis=2)
        return value, (means - right).mean(axis=1) + 2 * RIDGE * weights

    start = np.ones(len(channels))
    result = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return np.asarray(result.x, dtype=np.float64) / scales, float(result.fun)


@dataclass(frozen=True, slots=True)
class Dense:
    """Cosine to centroids after whitening by the pooled covariance within tasks, as ``default`` has it."""

    shrinkage: float

    def __call__(self, known: Texts, asked: Texts) -> Floats:
        """See Channel."""
        centroids, mean, white = whitened(known, self.shrinkage)
        return units((asked.vectors - mean) @ white) @ units((centroids - mean) @ white).T


@dataclass(frozen=True, slots=True)
class Words:
    """Cosine of BM25 weights, as ``default`` has it; ``saturation`` None counts linearly.

    Terms in fewer than ``least`` texts of a task say nothing of it: 2 keeps what may be its templates.
    """

    saturation: float | None = 2.0
    length_part: float = 0.75
    least: int = 1
    of: str = "words"

    def __call__(self, known: Texts, asked: Texts) -> Floats:
        """See Channel."""
        counts = getattr(known, self.of)
        tasks, own = np.unique(known.owners, return_inverse=True)
        member = sparse.csr_matrix((np.ones(len(own)), (own, np.arange(len(own)))), (len(tasks), len(own)))
        totals = (member @ counts).tocsr()
        if self.least > 1:
            held = (member @ (counts > 0)).tocsr()
            totals = totals.multiply(held >= self.least).tocsr()
        totals = _truncated(totals)
        used_by = np.asarray((totals > 0).sum(axis=0)).ravel()
        idf = np.log1p((len(tasks) - used_by + 0.5) / (used_by + 0.5))
        lengths = np.asarray(totals.sum(axis=1)).ravel()
        weights = totals.tocoo()
        values = idf[weights.col] * self._saturated(weights.data, lengths[weights.row], lengths.mean())
        weights = sparse.csr_matrix((values, (weights.row, weights.col)), totals.shape)
        norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
        texts = getattr(asked, self.of).multiply(used_by > 0).sqrt().tocsr()
        sizes = np.sqrt(np.asarray(texts.multiply(texts).sum(axis=1)).ravel())
        products = np.asarray((texts @ weights.T).todense())
        scores: Floats = products / np.maximum(norms, 1e-12) / np.maximum(sizes, 1e-12)[:, None]
        return scores

    def _saturated(self, counts: Floats, lengths: Floats, mean: float) -> Floats:
        if self.saturation is None:
            return counts
        norm = 1.0 - self.length_part + self.length_part * lengths / max(mean, 1e-9)
        made: Floats = counts * (self.saturation + 1.0) / (counts + self.saturation * norm)
        return made


def _truncated(totals: Counts) -> Counts:
    """Keeps each task's MAX_TERMS most frequent terms, as its representation does."""
    for row in range(totals.shape[0]):
        part = slice(totals.indptr[row], totals.indptr[row + 1])
        if part.stop - part.start > MAX_TERMS:
            values = totals.data[part]
            order = np.argsort(-values, kind="stable")
            values[order[MAX_TERMS:]] = 0.0
    totals.eliminate_zeros()
    return totals


def whitened(known: Texts, shrinkage: float) -> tuple[Floats, Floats, Floats]:
    """Returns the tasks' centroids (T, d), their mean (d,), and the whitening matrix (d, d)."""
    centroids, values, axes = _spread(known)
    white = axes / np.sqrt((1.0 - shrinkage) * np.maximum(values, 0.0) + shrinkage)
    return centroids, centroids.mean(axis=0), white


@lru_cache(maxsize=256)
def _spread(known: Texts) -> tuple[Floats, Floats, Floats]:
    """Returns the centroids, and eigenvalues and axes of the covariance within tasks, of mean diagonal 1."""
    vectors = known.vectors
    tasks, own = np.unique(known.owners, return_inverse=True)
    centroids = means_by(own, vectors, len(tasks))
    rest = vectors - centroids[own]
    scale = rest.shape[1] / max(float((rest**2).sum()), 1e-12)
    return centroids, *np.linalg.eigh(rest.T @ rest * scale)


def means_by(groups: Rows, vectors: Floats, count: int) -> Floats:
    """Returns (count, d), the mean of the (n, d) ``vectors`` of each group."""
    member = np.zeros((count, len(groups)))
    member[groups, np.arange(len(groups))] = 1.0
    means: Floats = member @ vectors / member.sum(axis=1, keepdims=True)
    return means


def units(rows: Floats) -> Floats:
    """Returns rows of length 1."""
    scaled: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def whitenings(
    *others: Channel, dense: Callable[[float], Channel] = Dense
) -> tuple[tuple[Channel, ...], ...]:
    """Returns the alternatives of a design: a dense channel at each shrinkage, beside ``others``."""
    return tuple((dense(shrinkage), *others) for shrinkage in sorted(SHRINKAGES, reverse=True))


DEFAULT = Design("default", whitenings(Words()))


def read_texts(flan: Flan, embedded: Embedded) -> tuple[Texts, Texts]:
    """Returns the validation inputs and the queries, each in the order of tasks."""
    sides = [(flan.validation, embedded.validation), (flan.queries, embedded.queries)]
    texts = [text for inputs, _ in sides for name in flan.tasks for text in inputs[name]]
    sizes = [[len(inputs[name]) for name in flan.tasks] for inputs, _ in sides]
    corpus = Corpus(
        owners=np.concatenate([np.repeat(np.arange(len(each)), each) for each in sizes]),
        vectors=_stacked(flan, embedded),
        words=_counted(map(_word_runs, texts)),
        characters=_counted(map(_character_runs, texts)),
        templates=templates_of(texts),
    )
    rows = np.arange(len(texts))
    cut = sum(sizes[0])
    return _texts(corpus, rows[:cut].tobytes()), _texts(corpus, rows[cut:].tobytes())


def with_vectors(flan: Flan, embedded: Embedded, *sides: Texts) -> tuple[Texts, ...]:
    """Returns texts of one corpus with other vectors."""
    corpus = replace(sides[0].corpus, vectors=_stacked(flan, embedded))
    return tuple(_texts(corpus, side.rows.tobytes()) for side in sides)


def _stacked(flan: Flan, embedded: Embedded) -> Floats:
    parts = [side[name] for side in (embedded.validation, embedded.queries) for name in flan.tasks]
    return np.concatenate(parts).astype(np.float64)


def _word_runs(text: str) -> Counter[Any]:
    words = tokens(text)
    counts: Counter[Any] = Counter()
    for size in (1, 2, 3):
        counts.update(zip(*(words[start:] for start in range(size)), strict=False))
    return counts


def _character_runs(text: str) -> Counter[Any]:
    folded = re.sub(r"\s+", " ", text.casefold())
    counts: Counter[Any] = Counter()
    for size in CHARACTERS:
        counts.update(folded[start : start + size] for start in range(len(folded) - size + 1))
    return counts


def _counted(texts: Iterable[Counter[Any]]) -> Counts:
    """Returns the counts of all texts as a sparse matrix; terms are numbered as they come."""
    numbers: dict[Any, int] = {}
    indices: list[int] = []
    values: list[float] = []
    ends = [0]
    for counts in texts:
        indices.extend(numbers.setdefault(term, len(numbers)) for term in counts)
        values.extend(counts.values())
        ends.append(len(indices))
    shape = (len(ends) - 1, max(1, len(numbers)))
    return sparse.csr_matrix((np.array(values, float), np.array(indices), np.array(ends)), shape)
