"""What the router measures about itself, in the process's Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
GENERATION = Gauge("lorauter_router_snapshot_generation", "Generation that is served; 0 before the first.")
STALE = Gauge("lorauter_router_snapshot_stale", "1 while newer generations may exist that cannot be read.")
SEARCHES = Counter("lorauter_router_searches", "Decisions by how tasks were searched.", ["kind"])
SEARCH_FAILURES = Counter(
    "lorauter_router_search_failures", "Searches of the index that did not serve; all was scored.", ["reason"]
)
SWAPS = Counter("lorauter_router_snapshot_swaps", "Snapshots that were swapped in.")
DECISION_LOG = Counter("lorauter_router_decision_log", "Decisions recorded, or dropped.", ["result"])
POLL_FAILURES = Counter("lorauter_router_poll_failures", "Polls of the index that failed.", ["reason"])
