"""The dashboard of backends, and all dashboards together."""

from __future__ import annotations

from benchmarks.dashboards_panels import HEALTH, QUALITY, Dashboard, Panel, quantile, rate, seen

BACKENDS = Dashboard(
    "lorauter-backends",
    "lorauter: backends",
    {
        "Replicas": [
            Panel(
                "Replicas by state",
                "healthy, ejected, half_open, as each gateway sees them.",
                [("sum by (backend, state) (lorauter_gateway_replicas)", "{{backend}} {{state}}")],
            ),
            Panel(
                "Generations under way",
                "By backend, those that wait for an adapter included.",
                [("sum by (backend) (lorauter_gateway_backend_in_flight)", "{{backend}}")],
            ),
            Panel(
                "Failures, ejections, retries",
                "Failures that were a backend's fault, and what gateways did about them.",
                [
                    (seen("lorauter_gateway_backend_failures_total", "reason"), "{{reason}}"),
                    (seen("lorauter_gateway_ejections_total", "backend"), "ejected {{backend}}"),
                    (seen("lorauter_gateway_retries_total", "pool"), "retried {{pool}}"),
                    (seen("lorauter_gateway_retries_refused_total", "pool"), "no budget {{pool}}"),
                ],
                "ops",
            ),
            Panel(
                "First piece, median",
                "From asking a backend until its answer begins; a whole answer is one piece.",
                [
                    (
                        quantile(0.5, 'lorauter_gateway_backend_seconds{until="first"}', "backend"),
                        "{{backend}}",
                    )
                ],
                "s",
            ),
            Panel(
                "First piece, 95th percentile",
                "The same.",
                [
                    (
                        quantile(0.95, 'lorauter_gateway_backend_seconds{until="first"}', "backend"),
                        "{{backend}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Whole answer, 95th percentile",
                "Until its last token.",
                [
                    (
                        quantile(0.95, 'lorauter_gateway_backend_seconds{until="whole"}', "backend"),
                        "{{backend}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Tokens",
                "Of answers that came to their end.",
                [(rate("lorauter_gateway_tokens_total", "pool, kind"), "{{pool}} {{kind}}")],
                "ops",
            ),
            Panel(
                "Compositions by kind of backend",
                "What was served by what.",
                [(rate("lorauter_gateway_served_total", "kind, composition"), "{{kind}} {{composition}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Adapters that a replica did not have, or had wrongly",
                "What canaries found.",
                [(seen("lorauter_gateway_canary_failures_total", "found"), "{{found}}")],
                "ops",
            ),
        ],
        "Adapters in servers that load them": [
            Panel(
                "Resident adapters",
                "Known to be ready, all replicas of a backend together.",
                [("sum by (backend) (lorauter_gateway_resident_adapters) or vector(0)", "{{backend}}")],
            ),
            Panel(
                "Loads and evictions",
                "By outcome.",
                [
                    (seen("lorauter_gateway_adapter_loads_total", "outcome"), "{{outcome}}"),
                    (seen("lorauter_gateway_adapter_evictions_total", "backend"), "evicted {{backend}}"),
                ],
                "ops",
            ),
            Panel(
                "Calls to the shared books that failed",
                "Redis holds them; without it servers that load adapters serve what they hold.",
                [(seen("lorauter_gateway_books_away_total", "operation"), "{{operation}}")],
                "ops",
            ),
        ],
        "lorauter's own engine": [
            Panel(
                "Rows and queues",
                "Generations in the batch, and what waits.",
                [
                    ("sum(lorauter_engine_rows)", "in the batch"),
                    ("sum by (kind) (lorauter_engine_queue)", "waiting {{kind}}"),
                ],
            ),
            Panel(
                "Duration of a forward pass, median",
                "prefill, decode, score.",
                [(quantile(0.5, "lorauter_engine_step_seconds", "kind"), "{{kind}}")],
                "s",
            ),
            Panel(
                "Tokens",
                "prompt, generated, scored.",
                [(rate("lorauter_engine_tokens_total", "kind"), "{{kind}}")],
                "ops",
            ),
            Panel(
                "Rows of a forward pass, 90th percentile",
                "How well it is filled.",
                [(quantile(0.9, "lorauter_engine_batch_rows", "kind"), "{{kind}}")],
            ),
            Panel(
                "Resident adapters",
                "In the model's memory; pinned ones are in use.",
                [
                    ("sum(lorauter_engine_resident_adapters)", "resident"),
                    ("sum(lorauter_engine_pinned_adapters)", "pinned"),
                ],
            ),
            Panel(
                "Bytes of resident adapters",
                "At most LORAUTER_ADAPTER_BYTES.",
                [("sum(lorauter_engine_resident_bytes)", "bytes")],
                "bytes",
            ),
        ],
    },
)

DASHBOARDS = (HEALTH, QUALITY, BACKENDS)
