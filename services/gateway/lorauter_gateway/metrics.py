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
RETRIES = Counter("lorauter_gateway_retries", "Generations that were tried on another backend.", ["pool"])
HTTP_ERRORS = Counter(
    "lorauter_gateway_http_errors", "HTTP errors by dialect and reason.", ["dialect", "reason"]
)
SNAPSHOT_POLL_FAILURES = Counter(
    "lorauter_gateway_snapshot_poll_failures", "Polls of the router that failed.", ["reason"]
)
