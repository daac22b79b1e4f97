"""Texts and task sets to time routing on: real FLAN queries where they are given, else synthetic ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.flan import read_flan
from lorauter.encoder.encoder import DEFAULT_ENCODER, encoder_directory
from lorauter.routing import term_frequencies
from lorauter.routing.bm25 import Terms, terms_of
from lorauter.routing.fitting import make_profile
from lorauter.routing.model import Adapter, Affinity, Pool, Snapshot, Task
from lorauter.routing.whitening import packed

SHORT_TOKENS = 20
"""Most tokens of a `short` query."""

MEDIAN_WORDS, SPREAD, MOST_WORDS = 70, 0.8, 700
"""Lengths of synthetic `flan` queries: about the real ones' median and spread of logarithms."""

VOCABULARY = 20_000
MEASURED = 10
"""Adapters measured on each task."""

EXAMPLES = 20
ADAPTERS = 1_000
DIMENSION = 384

TEMPLATES = (
    "{} What is the answer?",
    "Question: {}\nAnswer:",
    'Read this: "{}" Is that positive or negative?',
    "Translate to French:\n\n{}",
    "Premise: {}\nDoes it follow? Options: yes, no",
    "{}\n\nWrite one sentence about it.",
)


@dataclass(frozen=True, slots=True)
class Texts:
    """Distinct query texts by workload: ``short``, at most 20 tokens, and ``flan``, of real lengths."""

    short: tuple[str, ...]
    flan: tuple[str, ...]
    are_real: bool


def make_texts(count: int, seed: int, flan: Path | None) -> Texts:
    """Returns ``count`` texts of each workload; `flan` ones are real where a folder is given."""
    random = np.random.default_rng(seed)
    short = _short([_words(random, int(random.integers(2, 8))) for _ in range(4 * count)], count)
    if flan is None:
        lengths = np.minimum(random.lognormal(np.log(MEDIAN_WORDS), SPREAD, count), MOST_WORDS)
        return Texts(short, tuple(_templated(random, int(length) + 1) for length in lengths), False)
    real = sorted({text for texts in read_flan(flan).queries.values() for text in texts})
    chosen = [real[number % len(real)] for number in random.permutation(max(count, len(real)))[:count]]
    return Texts(short, tuple(f"{text} [{number}]" for number, text in enumerate(chosen)), True)


def make_snapshot(count: int, corpus: Sequence[str], encoder_digest: str, seed: int) -> Snapshot:
    """Returns a pool of ``count`` tasks: synthetic unit vectors, terms of ``corpus``, ten affinities each."""
    random = np.random.default_rng(seed)
    terms = [terms_of(term_frequencies(text)) for text in corpus]
    noise = random.standard_normal((2 * DIMENSION, DIMENSION))
    profile = make_profile({"shrinkage": 0.3, "dense_weight": 10.0, "lexical_weight": 10.0}, {})
    pool = Pool(
        pool_id="bench",
        base_model="base",
        base_model_aliases=(),
        untypical_policy="ROUTE",
        profile=replace(profile, scatter=packed(noise.T @ noise / len(noise))),
        tasks=tuple(_task(number, terms, random) for number in range(count)),
        adapters=tuple(Adapter(f"adapter-{n}", 1, f"sha256:{n}", routable=True) for n in range(ADAPTERS)),
        backends=(),
    )
    return Snapshot("default", 1, "", encoder_digest, {"bench": pool})


def _task(number: int, terms: Sequence[Terms], random: np.random.Generator) -> Task:
    chosen = [terms[place] for place in random.integers(0, len(terms), EXAMPLES)]
    ids, inverse = np.unique(np.concatenate([each.ids for each in chosen]), return_inverse=True)
    counts = np.bincount(inverse, np.concatenate([each.counts for each in chosen])).astype(np.float64)
    vector = random.standard_normal(DIMENSION).astype(np.float32)
    scores = np.sort(random.random(MEASURED))[::-1]
    adapters = random.choice(ADAPTERS, MEASURED, replace=False)
    return Task(
        task_id=f"task-{number:05d}",
        version=1,
        metric="exact_match",
        tags=frozenset(),
        example_count=EXAMPLES,
        centroid=0.8 * vector / np.linalg.norm(vector),
        terms=Terms(ids, counts),
        affinities=tuple(
            Affinity(f"adapter-{adapter}", 1, float(score), EXAMPLES, 0.1)
            for adapter, score in zip(adapters, scores, strict=True)
        ),
    )


def _short(candidates: Sequence[str], count: int) -> tuple[str, ...]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder_directory(DEFAULT_ENCODER) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch_fast(list(candidates))
    kept = (text for text, one in zip(candidates, encodings, strict=True) if len(one.ids) <= SHORT_TOKENS)
    return tuple(dict.fromkeys(kept))[:count]


def _templated(random: np.random.Generator, words: int) -> str:
    return TEMPLATES[int(random.integers(len(TEMPLATES)))].format(_words(random, words))


def _words(random: np.random.Generator, count: int) -> str:
    """Words by Zipf's law, made of syllables so that a tokenizer cuts them as it does real ones."""
    ranks = np.minimum(random.zipf(1.3, count), VOCABULARY)
    return " ".join(_word(int(rank)) for rank in ranks)


def _word(rank: int) -> str:
    syllables = ("the", "an", "co", "ver", "mi", "ter", "sol", "ra", "ing", "pe")
    return "".join(syllables[int(digit)] for digit in str(rank))


def dump(texts: Texts) -> str:
    """Returns the texts as JSON, for another process."""
    return json.dumps({"short": texts.short, "flan": texts.flan, "are_real": texts.are_real})


def load(text: str) -> Texts:
    """Reads what dump() wrote."""
    values = json.loads(text)
    return Texts(tuple(values["short"]), tuple(values["flan"]), values["are_real"])
