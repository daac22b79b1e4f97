"""The names under which servers know what is in the adapter store."""

from __future__ import annotations

import re

from lorauter.identifiers import COMPOSITE_PREFIX

_OURS = re.compile(rf"[0-9a-f]{{64}}|{COMPOSITE_PREFIX}[0-9a-f]{{16}}")


def is_served_name(name: str) -> bool:
    """Whether a server's name is one of ours; others are left alone."""
    return _OURS.fullmatch(name) is not None
