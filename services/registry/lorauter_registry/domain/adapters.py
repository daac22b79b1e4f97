"""The states of an adapter's versions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from lorauter.errors import FailedPrecondition
from lorauter_registry.domain.resources import AdapterState

_NEXT: Mapping[AdapterState, frozenset[AdapterState]] = {
    AdapterState.REGISTERED: frozenset({AdapterState.VERIFIED, AdapterState.QUARANTINED}),
    AdapterState.VERIFIED: frozenset({AdapterState.ACTIVE, AdapterState.QUARANTINED}),
    AdapterState.ACTIVE: frozenset({AdapterState.DRAINING, AdapterState.RETIRED, AdapterState.QUARANTINED}),
    AdapterState.DRAINING: frozenset({AdapterState.DRAINING, AdapterState.RETIRED, AdapterState.QUARANTINED}),
    AdapterState.RETIRED: frozenset({AdapterState.RETIRED, AdapterState.QUARANTINED}),
    AdapterState.QUARANTINED: frozenset(),
}


def can_become(state: AdapterState, target: AdapterState) -> bool:
    """Whether a version in ``state`` may go to ``target`` in one step."""
    return target in _NEXT[state]


def advance(state: AdapterState, *targets: AdapterState) -> AdapterState:
    """Returns the last of ``targets`` if each follows the one before it.

    Raises FailedPrecondition (INVALID_TRANSITION).
    """
    for target in targets:
        if not can_become(state, target):
            raise FailedPrecondition(
                "INVALID_TRANSITION",
                f"a version that is {state} cannot become {target}: register the adapter again",
                state=state,
            )
        state = target
    return state


def state_at(state: AdapterState, pins_until: datetime | None, now: datetime) -> AdapterState:
    """Returns the state as it is at ``now``: a draining version is retired once its pins have ended."""
    if state is AdapterState.DRAINING and pins_until is not None and pins_until <= now:
        return AdapterState.RETIRED
    return state
