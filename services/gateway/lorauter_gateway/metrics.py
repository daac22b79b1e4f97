"""What the gateway measures about itself, in the process's Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "lorauter_gateway_requests",
    "Generations by route and outcome (ok, cancelled, or a reason).",
    ["route", "outcome"],
)
OVERHEAD_SECONDS = Histogram(
    "lorauter_gateway_overhead_seconds",
    "Seconds from accepting a generation to asking the first backend, the router's time included.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IN_FLIGHT = Gauge("lorauter_gateway_in_flight", "Generations under way.")
BACKEND_FAILURES = Counter(
    "lorauter_gateway_backend_failures", "Failures that were a backend's fault.", ["backend", "reason"]
)
RETRIES = Counter("lorauter_gateway_retries", "Second tries of generations on another replica.", ["pool"])
RETRIES_REFUSED = Counter(
    "lorauter_gateway_retries_refused", "Second tries that the retry budget did not allow.", ["pool"]
)
DEGRADED = Counter(
    "lorauter_gateway_degraded",
    "Answers of something else than what was decided, by why.",
    ["pool", "reason"],
)
SERVED = Counter(
    "lorauter_gateway_served",
    "Answers begun, by pool, how adapters were composed (exact, composite, single, base), kind of backend.",
    ["pool", "composition", "kind"],
)
BACKEND_SECONDS = Histogram(
    "lorauter_gateway_backend_seconds",
    "Seconds from asking a backend until the answer's first piece, and until its end; one piece: both.",
    ["backend", "until"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
TOKENS = Counter(
    "lorauter_gateway_tokens", "Tokens of answers that came to their end, by kind.", ["pool", "kind"]
)
QUOTA_REFUSED = Counter(
    "lorauter_gateway_quota_refused", "Requests over what their keys may use in a minute."
)
QUOTA_UNCHECKED = Counter(
    "lorauter_gateway_quota_unchecked",
    "Requests of keys with limits while Redis, which counts, was away: allowed or refused.",
    ["outcome"],
)
REPLICAS = Gauge("lorauter_gateway_replicas", "Replicas of a backend by state.", ["backend", "state"])
REPLICA_IN_FLIGHT = Gauge(
    "lorauter_gateway_backend_in_flight",
    "Generations under way on a backend, those that wait for an adapter included.",
    ["backend"],
)
EJECTIONS = Counter("lorauter_gateway_ejections", "Ejections of a backend's replicas.", ["backend"])
LOADS = Counter(
    "lorauter_gateway_adapter_loads", "Loads of adapters and composites by outcome.", ["backend", "outcome"]
)
LOAD_SECONDS = Histogram(
    "lorauter_gateway_adapter_load_seconds",
    "Seconds from the books' grant until a loaded adapter was checked.",
    ["backend"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
EVICTIONS = Counter("lorauter_gateway_adapter_evictions", "Adapters unloaded to make room.", ["backend"])
RESIDENT = Gauge(
    "lorauter_gateway_resident_adapters",
    "Adapters and composites known to be ready on a backend's replicas, all together.",
    ["backend"],
)
CANARY_FAILURES = Counter(
    "lorauter_gateway_canary_failures",
    "Adapters that a replica did not have, or had wrongly.",
    ["backend", "found"],
)
BOOKS_AWAY = Counter(
    "lorauter_gateway_books_away", "Calls to the shared books that failed, by operation.", ["operation"]
)
HTTP_ERRORS = Counter(
    "lorauter_gateway_http_errors", "HTTP errors by dialect and reason.", ["dialect", "reason"]
)
SNAPSHOT_POLL_FAILURES = Counter(
    "lorauter_gateway_snapshot_poll_failures", "Polls of the router that failed.", ["reason"]
)
