"""The evaluators by the kind of backend that they speak to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lorauter.backends import PLAIN, BackendAccess
from lorauter.errors import FailedPrecondition
from lorauter_worker.adapters.addresses import replica_urls
from lorauter_worker.adapters.engine_evaluator import EngineEvaluator
from lorauter_worker.adapters.tgi_evaluator import TgiEvaluator
from lorauter_worker.adapters.vllm_evaluator import VllmEvaluator
from lorauter_worker.ports import Evaluator

EVALUATORS: Mapping[str, Callable[[Sequence[str], float, BackendAccess], Evaluator]] = {
    "ENGINE": EngineEvaluator,
    "VLLM": VllmEvaluator,
    "TGI": TgiEvaluator,
}
"""Makes an evaluator of a kind from URLs and the seconds for a batch; the preferred kind first."""


def make_evaluator(
    backends: Sequence[tuple[str, str]], timeout_seconds: float, access: BackendAccess = PLAIN
) -> Evaluator:
    """Returns an evaluator on all of the (kind, url) that are of the best kind among them.

    Kinds are not mixed: what one batch compares is measured alike. Every address behind a ``dns+http://`` is
    a replica. Raises FailedPrecondition (NO_EVALUATOR), Unavailable (BACKEND_UNAVAILABLE).
    """
    for kind, make in EVALUATORS.items():
        urls = [url for of_kind, url in backends if of_kind == kind]
        if urls:
            return make(replica_urls(urls), timeout_seconds, access)
    raise FailedPrecondition(
        "NO_EVALUATOR",
        f"the pool has no active backend to measure on: register one of kind {', '.join(EVALUATORS)}",
    )
