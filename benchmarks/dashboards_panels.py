"""What the dashboards show: every panel with its queries, which benchmarks.dashboards_grafana writes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OURS = '{job=~".*(registry|worker|router|gateway|engine).*"}'
"""The targets of lorauter's, whatever a Prometheus puts before or after a service's name."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. ``queries`` are PromQL with legends; ``unit`` is Grafana's; ``width`` is of 24 columns."""

    title: str
    about: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard: rows of panels by their titles."""

    uid: str
    title: str
    rows: Mapping[str, Sequence[Panel]]


def rate(metric: str, by: str = "") -> str:
    """Returns the sum of a counter's rate."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def seen(metric: str, by: str) -> str:
    """Returns the same of a counter that has no series before it first counts."""
    return f"{rate(metric, by)} or vector(0)"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """Returns a quantile of a histogram; ``histogram`` may select by labels."""
    name, brace, labels = histogram.partition("{")
    groups = f"le, {by}" if by else "le"
    buckets = f"{name}_bucket{brace}{labels}"
    return f"histogram_quantile({q}, sum by ({groups}) (rate({buckets}[$__rate_interval])))"


def quantiles(histogram: str, *which: float) -> list[tuple[str, str]]:
    """Returns several quantiles with their legends."""
    return [(quantile(q, histogram), f"p{q * 100:g}") for q in which]


HEALTH = Dashboard(
    "lorauter-health",
    "lorauter: service health",
    {
        "Answers": [
            Panel(
                "Generations by outcome",
                "ok, or the reason of what was refused or failed.",
                [(rate("lorauter_gateway_requests_total", "outcome"), "{{outcome}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Overhead of the gateway",
                "From accepting a generation to asking the first backend, the router's time included.",
                quantiles("lorauter_gateway_overhead_seconds", 0.5, 0.99),
                "s",
            ),
            Panel(
                "Generations under way",
                "On all gateways.",
                [("sum(lorauter_gateway_in_flight)", "under way")],
            ),
            Panel(
                "Routing by stage, median",
                "wait (for a generation), encode, search, decide, total.",
                [(quantile(0.5, "lorauter_router_stage_seconds", "stage"), "{{stage}}")],
                "s",
            ),
            Panel(
                "Routing by stage, 99th percentile",
                "The same.",
                [(quantile(0.99, "lorauter_router_stage_seconds", "stage"), "{{stage}}")],
                "s",
            ),
            Panel(
                "Queries that wait to be encoded",
                "Above LORAUTER_ENCODE_QUEUE they are refused.",
                [("sum(lorauter_router_encode_queue_length)", "waiting")],
            ),
        ],
        "From a change to the router": [
            Panel(
                "Generations behind",
                "Changes that the registry accepted and that are not published, and published ones that a "
                "router does not serve. More than 0 for longer than publishing takes is wrong.",
                [
                    (
                        "sum(max by (tenant) (lorauter_accepted_generation)) "
                        "- sum(max by (tenant) (lorauter_published_generation))",
                        "accepted, not published",
                    ),
                    (
                        "sum(max by (tenant) (lorauter_published_generation)) "
                        "- min(lorauter_router_snapshot_generation)",
                        "published, not served",
                    ),
                ],
            ),
            Panel(
                "Outbox: rows",
                "Work that is owed.",
                [("max by (topic) (lorauter_outbox_depth)", "{{topic}}")],
            ),
            Panel(
                "Outbox: age of the oldest row",
                "Of `index` it is how old the index may be.",
                [("max by (topic) (lorauter_outbox_age_seconds)", "{{topic}}")],
                "s",
            ),
            Panel(
                "Publishing",
                "From reading the registry to the moved marker.",
                quantiles("lorauter_projection_seconds", 0.5, 0.99),
                "s",
            ),
            Panel(
                "Repairs and rebuilds of the index, last hour",
                "Repairs outside of a change: 0 is expected.",
                [
                    ("sum(increase(lorauter_index_repairs_total[1h]))", "repairs"),
                    ("sum(increase(lorauter_index_rebuilds_total[1h]))", "rebuilds"),
                ],
            ),
            Panel(
                "Failed tries of work",
                "They are made again later.",
                [(rate("lorauter_work_failures_total", "topic"), "{{topic}}")],
                "ops",
            ),
            Panel(
                "Tenants with stale snapshots",
                "More than 0 while an index cannot be read; routers go on with what they have.",
                [("max(lorauter_router_snapshot_stale)", "stale")],
            ),
            Panel(
                "Snapshots swapped in",
                "On all routers.",
                [(rate("lorauter_router_snapshot_swaps_total"), "swaps")],
                "ops",
            ),
            Panel(
                "Decision log",
                "Decisions recorded for replays and manifests, or dropped.",
                [(rate("lorauter_router_decision_log_total", "result"), "{{result}}")],
                "ops",
            ),
        ],
        "Registry and matching": [
            Panel(
                "Calls of the registry by outcome",
                "ok, or the reason.",
                [(rate("lorauter_registry_call_seconds_count", "outcome"), "{{outcome}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Calls of the registry, 99th percentile",
                "By call.",
                [(quantile(0.99, "lorauter_registry_call_seconds", "call"), "{{call}}")],
                "s",
            ),
            Panel(
                "Calls and requests refused for their key or quota",
                "By reason; the audit log of each service has them one by one.",
                [
                    (seen("lorauter_access_denied_total", "reason"), "{{reason}}"),
                    (rate("lorauter_gateway_quota_refused_total"), "over quota"),
                    (seen("lorauter_gateway_quota_unchecked_total", "outcome"), "unchecked: {{outcome}}"),
                ],
                "reqps",
            ),
            Panel(
                "Tasks by state",
                "A task answers well once it is MATCHED.",
                [("max by (state) (lorauter_tasks)", "{{state}}")],
                stacked=True,
            ),
            Panel(
                "Adapter versions by state",
                "Quarantined ones have a reason in the registry.",
                [("max by (state) (lorauter_adapter_versions)", "{{state}}")],
                stacked=True,
            ),
            Panel(
                "Matching",
                "Evaluations of the operations under way.",
                [
                    ("max(lorauter_matching_evaluations_done)", "done"),
                    ("max(lorauter_matching_evaluations_left)", "left"),
                    (rate("lorauter_evaluations_total"), "a second"),
                ],
            ),
        ],
        "Processes": [
            Panel("Targets that answer", "1 is up.", [(f"min by (job) (up{OURS})", "{{job}}")]),
            Panel(
                "Memory",
                "Resident, the largest instance of each.",
                [(f"max by (job) (process_resident_memory_bytes{OURS})", "{{job}}")],
                "bytes",
            ),
            Panel(
                "CPU",
                "Cores, the sum of each.",
                [(f"sum by (job) (rate(process_cpu_seconds_total{OURS}[$__rate_interval]))", "{{job}}")],
            ),
        ],
    },
)

_BELOW = 'sum by (pool) (rate(lorauter_router_typicality_bucket{le="0.1"}[$__rate_interval]))'
_ALL = "sum by (pool) (rate(lorauter_router_typicality_count[$__rate_interval]))"

QUALITY = Dashboard(
    "lorauter-quality",
    "lorauter: routing quality",
    {
        "What is asked, and what answers": [
            Panel(
                "Task mix",
                "Decisions by their likeliest task; the most frequent ones.",
                [(rate("lorauter_router_task_decisions_total", "pool, task"), "{{pool}} {{task}}")],
                "reqps",
                stacked=True,
                width=12,
            ),
            Panel(
                "Adapter mix",
                "Decisions by what they serve.",
                [(rate("lorauter_router_adapter_decisions_total", "pool, adapter"), "{{pool}} {{adapter}}")],
                "reqps",
                stacked=True,
                width=12,
            ),
            Panel(
                "Actions",
                "ADAPTERS, BASE or REFUSE, as the pool's policy has it.",
                [(rate("lorauter_router_decisions_total", "action"), "{{action}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Strategies",
                "What decided.",
                [(rate("lorauter_router_decisions_total", "strategy"), "{{strategy}}")],
                "reqps",
            ),
            Panel(
                "Compositions that were served",
                "exact, composite, single or base.",
                [(rate("lorauter_gateway_served_total", "composition"), "{{composition}}")],
                "reqps",
                stacked=True,
            ),
        ],
        "How sure, and how usual": [
            Panel(
                "Confidence",
                "Probability of the likeliest task.",
                quantiles("lorauter_router_task_probability", 0.1, 0.5, 0.9),
                "percentunit",
            ),
            Panel(
                "Typicality",
                "Of queries that are like the validation examples, a tenth is below 0.1 and half below 0.5.",
                quantiles("lorauter_router_typicality", 0.1, 0.5, 0.9),
                "percentunit",
            ),
            Panel(
                "Answers of something else than was decided",
                "By reason: no slot, not written, quarantined and so on.",
                [(seen("lorauter_gateway_degraded_total", "reason"), "{{reason}}")],
                "reqps",
            ),
        ],
        "Drift against the validation sets": [
            Panel(
                "Drift of typicality",
                "Largest difference of the distributions over queries and over validation examples, 0 to 1 "
                "(Kolmogorov and Smirnov), of the last half hour.",
                [("lorauter:router_typicality:drift", "{{pool}}")],
                "percentunit",
            ),
            Panel(
                "Share of queries of typicality 0.1 or less",
                "Beside the same share of validation examples.",
                [
                    (f"{_BELOW} / {_ALL}", "{{pool}}: queries"),
                    (
                        'max by (pool) (lorauter_router_validation_typicality{le="0.1"})',
                        "{{pool}}: validation",
                    ),
                ],
                "percentunit",
            ),
            Panel(
                "Similarity to the nearest task, median",
                "Beside the median of validation examples, each left out of its own task.",
                [
                    (quantile(0.5, "lorauter_router_similarity", "pool"), "{{pool}}: queries"),
                    (
                        'max by (pool) (lorauter_router_validation_similarity{quantile="0.5"})',
                        "{{pool}}: validation",
                    ),
                ],
            ),
        ],
        "How it is computed": [
            Panel(
                "Churn of profiles",
                "Share of known queries that a changed task set sends to another adapter, mean of a day.",
                [
                    (
                        "sum(increase(lorauter_profile_churn_sum[1d])) "
                        "/ sum(increase(lorauter_profile_churn_count[1d]))",
                        "churn",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Decisions that were encoded before",
                "Share of queries whose vector was in the cache.",
                [
                    (
                        'sum(rate(lorauter_router_query_cache_total{result="hit"}[$__rate_interval])) '
                        f"/ {rate('lorauter_router_query_cache_total')}",
                        "hits",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Searches",
                "All tasks scored, or candidates of the index alone, in pools above LORAUTER_EXACT_LIMIT.",
                [(rate("lorauter_router_searches_total", "kind"), "{{kind}}")],
                "reqps",
            ),
        ],
    },
)
