"""Which metrics a PromQL expression reads; enough of its grammar to know that, and no more."""

from __future__ import annotations

import re

_LEFT_OUT = re.compile(
    r'"[^"]*"|\'[^\']*\'|\{[^}]*\}|\[[^\]]*\]'  # texts, selectors, ranges
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"  # lists of labels
)
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = frozenset({"and", "or", "unless", "offset", "bool", "by", "without", "inf", "nan"})


def metrics_in(expression: str) -> set[str]:
    """Returns the names of metrics, those of recording rules among them."""
    plain = _LEFT_OUT.sub(" ", expression.replace("$__rate_interval", "1m"))
    plain = re.sub(r"\b\d[\w.]*", " ", plain)  # numbers and durations
    return {name for name in _NAME.findall(plain) if name not in _WORDS}
