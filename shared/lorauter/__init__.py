"""lorauter: product services call it through Client and AsyncClient."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorauter.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from lorauter import client

        return getattr(client, name)
    raise AttributeError(f"module 'lorauter' has no attribute {name!r}")
