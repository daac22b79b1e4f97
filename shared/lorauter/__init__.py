"""lorauter: product services call it through Client and AsyncClient.

Importing it loads nothing; a name loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorauter import errors
    from lorauter.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "errors"]


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("lorauter.errors")
    if name in __all__:
        return getattr(import_module("lorauter.client"), name)
    raise AttributeError(f"module 'lorauter' has no attribute {name!r}")
