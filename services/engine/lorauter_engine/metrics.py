"""What the engine counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "lorauter_engine_requests", "Requests by route and outcome (success or error type).", ["route", "outcome"]
)
TOKENS = Counter("lorauter_engine_tokens", "Tokens by kind: prompt, generated, scored.", ["kind"])
ROWS = Gauge("lorauter_engine_rows", "Generations under way in the batch.")
QUEUE = Gauge("lorauter_engine_queue", "Waiting work by kind: generation rows, scoring items.", ["kind"])
BATCH_ROWS = Histogram(
    "lorauter_engine_batch_rows",
    "Rows of a forward pass by kind: prefill, decode, score.",
    ["kind"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
STEP_SECONDS = Histogram(
    "lorauter_engine_step_seconds",
    "Duration of a forward pass with the choice of tokens, by kind.",
    ["kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
RESIDENT_ADAPTERS = Gauge("lorauter_engine_resident_adapters", "Adapters in the model's memory.")
PINNED_ADAPTERS = Gauge(
    "lorauter_engine_pinned_adapters", "Resident adapters that running or waiting work uses."
)
RESIDENT_BYTES = Gauge("lorauter_engine_resident_bytes", "Bytes of the adapters in the model's memory.")
ADAPTER_LOADS = Counter(
    "lorauter_engine_adapter_loads", "Loads from the store by outcome: loaded, refused, failed.", ["outcome"]
)
ADAPTER_EVICTIONS = Counter("lorauter_engine_adapter_evictions", "Adapters evicted to make room.")

# A series that is read before it first counts must be there, at 0.
for _kind in ("prompt", "generated", "scored"):
    TOKENS.labels(_kind)
for _kind in ("rows", "items"):
    QUEUE.labels(_kind)
for _outcome in ("loaded", "refused", "failed"):
    ADAPTER_LOADS.labels(_outcome)
