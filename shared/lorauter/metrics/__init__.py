"""Metrics: how an answer is scored against its target. Needs the standard library only."""

from lorauter.metrics.registry import METRIC_NAMES, Metric, metric

__all__ = ["METRIC_NAMES", "Metric", "metric"]
