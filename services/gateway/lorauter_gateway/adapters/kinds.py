"""The kinds of backends that this gateway speaks: a driver's file and a line here make another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.engine import EngineDriver
from lorauter_gateway.adapters.tgi import TgiDriver
from lorauter_gateway.adapters.vllm import VllmDriver
from lorauter_gateway.ports import Driver, Takes


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of backend: how it comes to serve adapters, its client, and the highest rank of an adapter that
    it takes unless it is registered with another one, 0 for any."""

    takes: Takes
    make: Callable[[str, Connections], Driver]
    max_rank: int


KINDS: Mapping[str, Kind] = {
    "engine": Kind(Takes.SETS, EngineDriver, 0),
    "tgi": Kind(Takes.LISTED, TgiDriver, 128),
    "vllm": Kind(Takes.LOADS, VllmDriver, 16),
}
