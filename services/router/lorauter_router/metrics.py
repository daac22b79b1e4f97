"""What the router measures about itself, in the process's Prometheus registry."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from lorauter.routing.decision import Action, Decision
from lorauter.routing.fitting import known_name, typicality_name
from lorauter.routing.model import Pool, Profile
from lorauter.server.bounded import Bounded, TopCounter
from lorauter_router.domain import ServedSnapshot

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

STAGE_SECONDS = Histogram(
    "lorauter_router_stage_seconds",
    "Seconds that queries spent in a stage: wait (for a generation), encode, search, decide, total.",
    ["stage"],
    buckets=_SECONDS,
)
DECISIONS = Counter("lorauter_router_decisions", "Decisions made.", ["pool", "strategy", "action"])
CACHE = Counter("lorauter_router_query_cache", "Queries looked up in the query cache.", ["result"])
BATCH = Histogram(
    "lorauter_router_encode_batch_size",
    "Queries encoded together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
QUEUE = Gauge("lorauter_router_encode_queue_length", "Queries that wait to be encoded.")
GENERATION = Gauge(
    "lorauter_router_snapshot_generation",
    "Sum of the generations that are served, over tenants; 0 before the first.",
)
STALE = Gauge(
    "lorauter_router_snapshot_stale",
    "Tenants of whom newer generations may exist that cannot be read; 0 is well.",
)
TENANTS = Gauge("lorauter_router_tenants", "Tenants whose snapshots are served, `public` among them.")
SEARCHES = Counter("lorauter_router_searches", "Decisions by how tasks were searched.", ["kind"])
SEARCH_FAILURES = Counter(
    "lorauter_router_search_failures", "Searches of the index that did not serve; all was scored.", ["reason"]
)
SWAPS = Counter("lorauter_router_snapshot_swaps", "Snapshots that were swapped in.")
DECISION_LOG = Counter("lorauter_router_decision_log", "Decisions recorded, or dropped.", ["result"])
POLL_FAILURES = Counter("lorauter_router_poll_failures", "Polls of the index that failed.", ["reason"])
MOST_POOLS = 100
"""Pools that metrics tell apart."""
MOST_NAMES = 50
"""Tasks, and adapters, that metrics tell apart where no setting says otherwise."""

PLAIN_TENANT = "default"
"""Whose pools have no tenant before their names."""

_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_QUANTILES = (0.1, 0.5, 0.9)

TYPICALITY = Histogram("lorauter_router_typicality", "Typicality of queries.", ["pool"], buckets=_SHARES)
VALIDATION_TYPICALITY = Gauge(
    "lorauter_router_validation_typicality",
    "Share of validation examples, each left out of its own task, whose typicality is at most `le`: what to "
    "compare that of queries with.",
    ["pool", "le"],
)
SIMILARITY = Histogram(
    "lorauter_router_similarity",
    "Largest cosine similarity of a query to a task.",
    ["pool"],
    buckets=tuple(step / 20 for step in range(-4, 21)),
)
VALIDATION_SIMILARITY = Gauge(
    "lorauter_router_validation_similarity",
    "Quantiles of the same over validation examples, each left out of its own task.",
    ["pool", "quantile"],
)
CONFIDENCE = Histogram(
    "lorauter_router_task_probability", "Probability of a query's likeliest task.", ["pool"], buckets=_SHARES
)
BY_TASK = TopCounter(
    "lorauter_router_task_decisions",
    "Decisions by their likeliest task; only the most frequent tasks are told apart.",
    "task",
    MOST_NAMES,
)
BY_ADAPTER = TopCounter(
    "lorauter_router_adapter_decisions",
    "Decisions by what they serve, each adapter of a set once; only the most frequent are told apart.",
    "adapter",
    MOST_NAMES,
)

pool_label = Bounded(MOST_POOLS)


def following(served: Collection[ServedSnapshot]) -> None:
    """Says what is served now."""
    GENERATION.set(sum(each.snapshot.generation for each in served))
    STALE.set(sum(each.stale for each in served))
    TENANTS.set(len(served))


def label_of(tenant: str, pool_id: str) -> str:
    """Returns what names a pool in metrics, of those that are told apart; of one tenant, just its id."""
    return pool_label(pool_id if tenant == PLAIN_TENANT else f"{tenant}/{pool_id}")


def decided(tenant: str, pool_id: str, decision: Decision) -> None:
    """Counts a decision in a tenant's pool by what it is like."""
    pool = label_of(tenant, pool_id)
    DECISIONS.labels(pool, decision.strategy, decision.action.value).inc()
    typicality, similarity, confidence = _of_pool(pool)
    typicality.observe(decision.typicality)
    if decision.tasks:
        similarity.observe(max(task.similarity for task in decision.tasks))
        confidence.observe(decision.tasks[0].probability)
        BY_TASK.inc(pool, decision.tasks[0].task_id)
    if decision.action is Action.REFUSE:
        BY_ADAPTER.inc(pool, "none")
    for each in decision.adapters:
        BY_ADAPTER.inc(pool, each.arm.adapter_id)
    if decision.action is Action.BASE:
        BY_ADAPTER.inc(pool, decision.best_single.adapter_id)


@cache
def _of_pool(pool: str) -> tuple[Histogram, Histogram, Histogram]:
    return TYPICALITY.labels(pool), SIMILARITY.labels(pool), CONFIDENCE.labels(pool)


def expect(tenant: str, pools: Iterable[Pool]) -> None:
    """Says what the validation sets of a tenant's pools that are served now lead to expect of queries."""
    for pool in pools:
        label = label_of(tenant, pool.pool_id)
        for share in _SHARES:
            VALIDATION_TYPICALITY.labels(label, str(share)).set(expected_below(pool.profile, share))
        for quantile in _QUANTILES:
            value = pool.profile.constants.get(typicality_name(quantile))
            if value is not None:
                VALIDATION_SIMILARITY.labels(label, str(quantile)).set(value)


def expected_below(profile: Profile, typicality: float) -> float:
    """Returns the share of known queries whose typicality is at most this: typicality_of() turned round."""
    count = profile.constants.get(known_name("score"))
    if profile.constants.get(typicality_name(0.5, "score")) is None:
        return float(typicality >= 1.0)
    if count is None or count <= 1:
        return typicality
    return min(1.0, max(0.0, (typicality * (count + 1.0) - 1.0) / (count - 1.0)))
