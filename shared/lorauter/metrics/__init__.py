"""Metrics: how an answer is scored against its target. Importing it needs nothing beyond the client."""

from lorauter.metrics.metric import Metric
from lorauter.metrics.registry import METRIC_NAMES, metric, metric_names, register

__all__ = ["METRIC_NAMES", "Metric", "metric", "metric_names", "register"]
