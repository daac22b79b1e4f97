"""Response headers that say what served, as RFC 8941 structured fields."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorauter.gateway.v1.gateway_pb2 import Composition
from lorauter.identifiers import BASE
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.service import Serving

COMPOSITIONS = {
    Composition.COMPOSITION_EXACT: "exact",
    Composition.COMPOSITION_COMPOSITE: "composite",
    Composition.COMPOSITION_SINGLE: "single",
    Composition.COMPOSITION_BASE: "base",
}

NO_DECISION = "none"
"""Decision of a request whose caller chose what answers."""

_MOST_REASON = 1000
_UNPRINTABLE = re.compile(r"[^ -~]")
_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*")


def serving_headers(serving: Serving) -> dict[str, str]:
    """Returns the x-lorauter-* headers of an answer.

    ``x-lorauter-decision`` is ``none`` and ``x-lorauter-adapters`` is ``base;w=1.0`` where there is no
    decision or no adapter; ``x-lorauter-degraded`` is there only if the decision was not served as it is, and
    ``x-lorauter-replica`` only if the backend may have several. ``x-lorauter-kept`` says that a conversation
    keeps what answered its last turn. What the key has left is told as OpenAI does, by x-ratelimit-*.
    """
    headers = {
        "x-lorauter-decision": serving.decision.decision_id if serving.decision else NO_DECISION,
        "x-lorauter-adapters": adapter_list(serving.plan.adapters),
        "x-lorauter-composition": COMPOSITIONS[serving.plan.composition],
        "x-lorauter-backend": serving.backend_id,
        **serving.quota,
    }
    if serving.is_one_of_several and serving.shown_replica:
        headers["x-lorauter-replica"] = serving.shown_replica
    if serving.plan.degraded_reason:
        headers["x-lorauter-degraded"] = _field(serving.plan.degraded_reason)
    if serving.kept:
        headers["x-lorauter-kept"] = serving.kept
    return headers


def _field(text: str) -> str:
    """Returns what of a text a header may hold: a backend's own words may be in it."""
    return _UNPRINTABLE.sub(" ", text[:_MOST_REASON].encode("ascii", "replace").decode())


def adapter_list(adapters: Sequence[WeightedAdapter]) -> str:
    """Returns an RFC 8941 list such as ``id;w=0.62, id2;w=0.38``, the largest weight first."""
    if not adapters:
        return f"{BASE};w=1.0"
    ordered = sorted(adapters, key=lambda adapter: -adapter.weight)
    return ", ".join(f"{_bare_item(a.adapter_id)};w={_decimal(a.weight)}" for a in ordered)


def _bare_item(adapter_id: str) -> str:
    # an id may begin with a digit, which a token may not
    return adapter_id if _TOKEN.fullmatch(adapter_id) else f'"{adapter_id}"'


def _decimal(value: float) -> str:
    # RFC 8941 allows three fractional digits and asks for at least one
    whole, _, fraction = f"{value:.3f}".partition(".")
    return f"{whole}.{fraction.rstrip('0') or '0'}"
