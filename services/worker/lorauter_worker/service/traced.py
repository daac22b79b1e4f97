"""Goes on with the traces of the changes that owe a piece of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorauter import tracing
from lorauter_worker.service.outbox import Claim

MOST = 32
"""Traces that one piece of work goes on with; those of still more changes end at their commit."""


@contextmanager
def working(name: str, claim: Claim) -> Iterator[tracing.Span]:
    """Makes a span of the block in the trace of the oldest change that owes the work, if it is in one.

    Work that many changes owe is done once. In the traces of the others stands a span of the same time that
    is linked to it.
    """
    places = [tracing.stored(each) for each in dict.fromkeys(claim.traces) if each][:MOST]
    if not places or not tracing.is_on():
        yield tracing.OFF
        return
    attributes: tracing.Attributes = {"lorauter.work": claim.key, "lorauter.changes": len(claim.fences)}
    with tracing.span(name, "consumer", attributes, places[0], places[1:]) as span:
        here = [tracing.carrier()]
        others = [tracing.span(name, "consumer", attributes, place, here) for place in places[1:]]
        try:
            yield span
        finally:
            for other in others:
                other.end()


def recording() -> tracing.Span:
    """Returns the span of writing to the registry what was published."""
    return tracing.span("record", "client", {"db.system.name": "postgresql"})
