"""How vLLM keeps adapters: names in the frontend, weights in the engine's cache, and who may run together."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.protocol_servers.weights import BASE, LoadError, Reading, Weights

READING = Reading(
    layers=frozenset(
        {
            *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
            *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_proj", "c_fc", "c_attn", "lm_head"),
        }
    ),
    needs_prefix=False,
    whole_types=False,
    refuses_others=True,
)


class Refused(Exception):
    """What a load or unload is answered instead of success."""

    def __init__(self, status: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Registered:
    number: int
    path: str


class Adapters:
    """Names that requests may use, and weights by the number that each loading of a name gets.

    The cache holds ``max_cpu_loras`` adapters, forgotten ones too; the least recently used leaves. Of
    adapters that requests run with at a time there are at most ``max_loras``, of requests ``max_num_seqs``.
    """

    def __init__(
        self,
        read: Callable[[str], Weights],
        max_rank: int,
        max_loras: int,
        max_cpu_loras: int,
        max_num_seqs: int,
    ) -> None:
        if max_cpu_loras < max_loras:
            raise ValueError(f"max_cpu_loras ({max_cpu_loras}) must be >= max_loras ({max_loras})")
        self._read = read
        self._max_rank = max_rank
        self._max_loras = max_loras
        self._max_cpu_loras = max_cpu_loras
        self._max_num_seqs = max_num_seqs
        self.names: dict[str, _Registered] = {}
        self._cache: OrderedDict[int, tuple[str, Weights]] = OrderedDict()
        self._prefixes: dict[tuple[str, str], Weights] = {}
        self._numbers = 0
        self._running: Counter[int] = Counter()
        self._changed = asyncio.Condition()
        self.loads: Counter[str] = Counter()
        self.loaded_twice: Counter[str] = Counter()
        """Loads that were refused because the name was loaded already."""
        self.unloads: Counter[str] = Counter()
        self.evicted: Counter[str] = Counter()
        """Adapters that left the cache while their names were registered, and so will be read again."""
        self.evicted_in_use: Counter[str] = Counter()
        self.unloaded_in_use: Counter[str] = Counter()
        self.read_again: Counter[str] = Counter()
        self.most_registered = 0

    def load(self, name: Any, path: Any, in_place: bool = False) -> str:
        """Returns vLLM's words of success; raises Refused."""
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        known = self.names.get(name)
        if known and not in_place:
            self.loaded_twice[name] += 1
            raise Refused(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True.",
                "InvalidUserInput",
            )
        try:
            weights = self._checked(path)
        except LoadError as error:
            if error.is_missing:
                raise Refused(404, str(error), "NotFoundError") from None
            raise Refused(500, str(error), "InternalServerError") from None
        if not known:
            self._numbers += 1
        number = known.number if known else self._numbers
        self._keep(number, name, weights)
        self.names[name] = _Registered(number, path)
        self.loads[name] += 1
        self.most_registered = max(self.most_registered, len(self.names))
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: Any) -> str:
        """Forgets a name; returns vLLM's words of success or raises Refused. The cache stays as it is."""
        if not name:
            message = "'lora_name' needs to be provided to unload a LoRA adapter."
            raise Refused(400, message, "InvalidUserInput")
        if name not in self.names:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        if self._running[self.names[name].number]:
            self.unloaded_in_use[name] += 1
        del self.names[name]
        self.unloads[name] += 1
        return f"Success: LoRA adapter '{name}' removed successfully."

    def paths(self) -> Mapping[str, str]:
        """Returns the paths of what is registered, by name."""
        return {name: each.path for name, each in self.names.items()}

    @asynccontextmanager
    async def scheduled(self, name: str) -> AsyncIterator[Weights]:
        """Waits until a request may run with an adapter, or with the base for an empty name."""
        number = self.names[name].number if name else 0
        path = self.names[name].path if name else ""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(number))
            self._running[number] += 1
        try:
            yield self._used(number, name, path) if name else BASE
        finally:
            self._running[number] -= 1
            if number in self._cache:
                self._cache.move_to_end(number)
            if not self._running[number]:
                del self._running[number]
            async with self._changed:
                self._changed.notify_all()

    def counters(self) -> dict[str, Any]:
        """Returns what tests want to know."""
        return {
            "registered": self.paths(),
            "most_registered": self.most_registered,
            "loads": self.loads,
            "loaded_twice": self.loaded_twice,
            "unloads": self.unloads,
            "evicted": self.evicted,
            "evicted_in_use": self.evicted_in_use,
            "unloaded_in_use": self.unloaded_in_use,
            "read_again": self.read_again,
        }

    def _checked(self, path: str) -> Weights:
        weights = self._read(path)
        if weights.rank > self._max_rank:
            raise LoadError(f"LoRA rank {weights.rank} is greater than max_lora_rank {self._max_rank}.")
        return weights

    def _keep(self, number: int, name: str, weights: Weights) -> None:
        self._cache[number] = (name, weights)
        self._cache.move_to_end(number)
        # every step of the engine makes the adapters of its batch the most recent ones
        for running in [each for each in self._running if each in self._cache]:
            self._cache.move_to_end(running)
        while len(self._cache) > self._max_cpu_loras:
            oldest, (evicted, _) = self._cache.popitem(last=False)
            registered = self.names.get(evicted)
            if registered and registered.number == oldest:
                self.evicted[evicted] += 1
            if self._running[oldest]:
                self.evicted_in_use[evicted] += 1

    def _used(self, number: int, name: str, path: str) -> Weights:
        if number not in self._cache:
            self.read_again[name] += 1
            self._keep(number, name, self._checked(path))
        self._cache.move_to_end(number)
        # the prefix cache goes by name and path: what it holds was computed with the weights of its time
        return self._prefixes.setdefault((name, path), self._cache[number][1])

    def _fits(self, number: int) -> bool:
        if sum(self._running.values()) >= self._max_num_seqs:
            return False
        adapters = {each for each, count in self._running.items() if each and count}
        return not number or number in adapters or len(adapters) < self._max_loras
