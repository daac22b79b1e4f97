"""Reads the rules that Prometheus evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "observability"
RULES = FOLDER / "alerts.yaml"
TESTS = FOLDER / "alerts_test.yaml"


def rules() -> Iterator[dict[str, Any]]:
    """Yields all rules; those that record have ``record``, the others ``alert``."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """Returns the alerts."""
    return [rule for rule in rules() if "alert" in rule]
