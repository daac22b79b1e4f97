"""Routing without network or database: representations, profiles and decisions on numpy arrays."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorauter.routing.compiled import Arm, CompiledPool, compile_pool
    from lorauter.routing.deciding import decide
    from lorauter.routing.decision import Action, Decision, RouteOptions
    from lorauter.routing.fitting import TaskExamples, fit_profile
    from lorauter.routing.lexical import term_frequencies
    from lorauter.routing.representation import TaskRepresentation, represent
    from lorauter.routing.strategies import STRATEGIES
    from lorauter.routing.text import routed_text

_HOMES = {
    "STRATEGIES": "strategies",
    "Action": "decision",
    "Arm": "compiled",
    "CompiledPool": "compiled",
    "Decision": "decision",
    "RouteOptions": "decision",
    "compile_pool": "compiled",
    "decide": "deciding",
    "TaskExamples": "fitting",
    "fit_profile": "fitting",
    "term_frequencies": "lexical",
    "TaskRepresentation": "representation",
    "represent": "representation",
    "routed_text": "text",
}

__all__ = [
    "STRATEGIES",
    "Action",
    "Arm",
    "CompiledPool",
    "Decision",
    "RouteOptions",
    "TaskExamples",
    "TaskRepresentation",
    "compile_pool",
    "decide",
    "fit_profile",
    "represent",
    "routed_text",
    "term_frequencies",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that routed_text comes without numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
