"""The worker's Prometheus metrics, summed over its main and its child processes.

Children write to files in PROMETHEUS_MULTIPROC_DIR, which main() sets before this is imported; the
default registry, which /metrics shows, reads them all.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

_OWN = CollectorRegistry()

OUTBOX_DEPTH = Gauge(
    "lorauter_outbox_depth",
    "Rows of the outbox.",
    ["topic"],
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
OUTBOX_AGE = Gauge(
    "lorauter_outbox_age_seconds",
    "Age of the oldest row of the outbox.",
    ["topic"],
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
PUBLISHED = Gauge(
    "lorauter_published_generation",
    "Newest generation that routers can be at.",
    ["tenant"],
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
ACCEPTED = Gauge(
    "lorauter_accepted_generation",
    "Newest generation that the registry accepted.",
    ["tenant"],
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
TASKS = Gauge("lorauter_tasks", "Tasks by state.", ["state"], registry=_OWN, multiprocess_mode="mostrecent")
ADAPTERS = Gauge(
    "lorauter_adapter_versions",
    "Adapter versions by state.",
    ["state"],
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
OPERATIONS = Gauge(
    "lorauter_operations_under_way",
    "Operations that have not ended.",
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
MATCHING_DONE = Gauge(
    "lorauter_matching_evaluations_done",
    "Evaluations done of the operations under way.",
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
MATCHING_LEFT = Gauge(
    "lorauter_matching_evaluations_left",
    "Evaluations that they still expect.",
    registry=_OWN,
    multiprocess_mode="mostrecent",
)
PROJECTIONS = Counter(
    "lorauter_projections_total", "Projections published, by result.", ["result"], registry=_OWN
)
PROJECTION_SECONDS = Histogram(
    "lorauter_projection_seconds",
    "Time from reading the registry to the moved marker.",
    registry=_OWN,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CHURN = Histogram(
    "lorauter_profile_churn",
    "Share of known queries that a changed task set sends to another adapter.",
    registry=_OWN,
    buckets=(0.0, 0.005, 0.01, 0.015, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0),
)
ENCODED = Counter("lorauter_encoded_texts_total", "Texts that were not in the cache.", registry=_OWN)
REPAIRS = Counter(
    "lorauter_index_repairs_total",
    "Repairs of the index outside of a change; 0 is expected.",
    registry=_OWN,
)
REBUILDS = Counter(
    "lorauter_index_rebuilds_total",
    "Times that all was published anew: to an index that was empty, or for another encoder.",
    registry=_OWN,
)
EVALUATIONS = Counter("lorauter_evaluations_total", "Examples on which an arm was measured.", registry=_OWN)
DECISIONS = Counter(
    "lorauter_recorded_decisions_total", "Recorded decisions, stored or dropped.", ["result"], registry=_OWN
)
COMPOSITIONS = Counter(
    "lorauter_wanted_compositions_total",
    "Compositions that gateways wanted as composites: written, refused, recalled afterwards, or dropped as "
    "nothing that can be read.",
    ["result"],
    registry=_OWN,
)
MANIFESTS = Counter(
    "lorauter_manifests_total",
    "Pool manifests: proposed, published by the worker, written (their composites), or failed.",
    ["result"],
    registry=_OWN,
)
FAILURES = Counter("lorauter_work_failures_total", "Failed tries of work.", ["topic"], registry=_OWN)

# A series that is read before it first counts must be there, at 0.
for _topic in ("index", "matching"):
    FAILURES.labels(_topic)
for _counter, _results in (
    (PROJECTIONS, ("published", "overtaken")),
    (DECISIONS, ("stored", "dropped")),
    (COMPOSITIONS, ("written", "refused", "recalled", "dropped")),
    (MANIFESTS, ("proposed", "published", "written", "failed")),
):
    for _result in _results:
        _counter.labels(_result)


def export() -> None:
    """Shows these metrics of all processes in the default registry; once, in the main process."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(REGISTRY)  # type: ignore[no-untyped-call]
    else:
        REGISTRY.register(_OWN)
