"""What routes are timed on: texts of the lengths that are claimed, and snapshots that a router can serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.latency_texts import SHORT_TOKENS, dump, load, make_snapshot, make_texts
from lorauter.encoder.encoder import DEFAULT_ENCODER, encoder_directory
from lorauter.routing import compile_pool, decide
from lorauter.routing.strategies.strategy import Query


def token_counts(texts: tuple[str, ...]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder_directory(DEFAULT_ENCODER) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(tokenizer.encode(text).ids) for text in texts]


def test_texts_are_distinct_and_of_the_lengths_that_are_claimed() -> None:
    texts = make_texts(200, 0, None)
    assert len(set(texts.short)) == len(set(texts.flan)) == 200
    assert max(token_counts(texts.short)) <= SHORT_TOKENS
    assert 60 < np.median(token_counts(texts.flan)) < 300
    assert max(token_counts(texts.flan)) > 254
    assert load(dump(texts)) == texts == make_texts(200, 0, None)


def test_real_texts_are_taken_when_a_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "affinity.csv").write_text("task,a\na,50\n")
    (tmp_path / "tasks.jsonl").write_text('{"task": "a", "cluster": "c", "metric": "exact_match"}\n')
    (tmp_path / "validation.jsonl").write_text('{"task": "a", "input": "seen", "target": "x"}\n')
    (tmp_path / "queries.jsonl").write_text(
        "".join(f'{{"task": "a", "input": "{text}", "target": "x"}}\n' for text in ("seen", "one", "two"))
    )
    texts = make_texts(5, 0, tmp_path)
    assert texts.are_real
    assert len(set(texts.flan)) == 5
    assert {text.split()[0] for text in texts.flan} == {"one", "two"}


def test_synthetic_snapshot_is_routed_on_by_vectors_words_and_scores() -> None:
    texts = make_texts(60, 0, None)
    snapshot = make_snapshot(40, texts.short, "sha256:x", 0)
    pool = compile_pool(snapshot.pools["bench"])
    task = pool.tasks[7]
    assert len(task.affinities) == 10
    assert pool.whitener is not None
    found = decide(pool, Query(pool.tasks[7].centroid, texts.short[0]))
    assert found.tasks[0].task_id == task.task_id
    assert found.best_single.adapter_id == task.affinities[0].adapter_id
