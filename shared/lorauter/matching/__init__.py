"""Matching: which adapters are best at a task, by measuring as little as possible. Needs numpy only."""

from lorauter.matching.model import Plan, Strategy, Table, example_key

__all__ = ["Plan", "Strategy", "Table", "example_key"]
