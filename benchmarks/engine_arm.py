"""Our side of a comparison: the worker's evaluator over HTTP on a real engine process with one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peft_arm import Item, Judged
from lorauter.prompts import PromptSpec, build_input
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec, running
from lorauter_worker.adapters.engine_evaluator import EngineEvaluator
from lorauter_worker.ports import Answer, Question, Scoring

TIMEOUT_SECONDS = 120.0
"""Bound on one batch of an evaluator."""


@contextmanager
def engine_process(base: Path, store: Path) -> Iterator[str]:
    """Runs an engine with one thread on the CPU, at its own settings otherwise; yields its address."""
    port = free_port()
    spec = ProcessSpec(
        "engine",
        [sys.executable, "-m", "lorauter_engine.main"],
        {
            "LORAUTER_MODEL": str(base),
            "LORAUTER_ADAPTER_STORE": str(store),
            "LORAUTER_DEVICE": "cpu",
            "LORAUTER_THREADS": "1",
            "LORAUTER_HTTP_PORT": str(port),
            "LORAUTER_LOG_LEVEL": "warning",
            "OMP_NUM_THREADS": "1",
        },
        probe=lambda: http_ready(port),
    )
    with running(spec):
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def one_core() -> Iterator[None]:
    """Within: this process and those that it starts share one core, so that no side has more than another."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class EngineArm:
    """Evaluates items on an engine. ``digests`` holds the adapters by name."""

    def __init__(self, url: str, digests: Mapping[str, str]) -> None:
        self._evaluator = EngineEvaluator([url], TIMEOUT_SECONDS)
        self._digests = digests

    def judge(self, items: Sequence[Item], scoring: Scoring) -> list[Judged]:
        """Returns what the engine finds; raises AssertionError if it refuses an adapter."""
        questions = [
            Question(build_input(PromptSpec(), item.prompt), item.target, self._digests[item.adapter])
            for item in items
        ]
        judged = []
        for answer in self._evaluator.evaluate(questions, scoring):
            assert isinstance(answer, Answer), answer
            judged.append(Judged(answer.score, answer.likelihood))
        return judged

    def close(self) -> None:
        """Releases connections."""
        self._evaluator.close()
