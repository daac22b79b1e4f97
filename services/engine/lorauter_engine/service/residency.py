"""Which adapters are in memory: loaded on demand, verified, pinned while in use, least recent out."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lorauter.errors import Exhausted, InvalidArgument, LorauterError, NotFound, UnprocessableRequest
from lorauter.lora.check import Limits, check_adapter
from lorauter.lora.store import AdapterStore, parse_digest
from lorauter.lora.weights import LoraWeights, read_weights
from lorauter.telemetry import get_logger
from lorauter_engine import metrics
from lorauter_engine.model.network import Placement
from lorauter_engine.model.plan import AdapterSet, Matrices, ResidentAdapter
from lorauter_engine.service.quarantine import Quarantine

_log = get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    adapter: ResidentAdapter
    pins: int = 0


@dataclass(slots=True)
class _Loading:
    done: threading.Event = field(default_factory=threading.Event)
    error: LorauterError | None = None


class Residency:
    """Adapters by digest, within ``max_bytes`` and ``max_count``. Safe to use from several threads."""

    def __init__(
        self,
        store: AdapterStore,
        modules: Mapping[str, tuple[int, int]],
        placement: Placement,
        max_bytes: int,
        max_count: int,
        max_rank: int,
    ) -> None:
        self._store = store
        self._modules = modules
        self._placement = placement
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._limits = Limits(max_rank=max_rank)
        self._quarantine = Quarantine()
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._loading: dict[str, _Loading] = {}
        self._room_taken = 0
        self._size_bytes = 0

    def acquire(self, wanted: Sequence[tuple[str, float]]) -> AdapterSet:
        """Returns the adapters with their weights, loaded and pinned until release().

        Blocks on the disk. Raises UnprocessableRequest: ADAPTER_UNKNOWN, or why a stored one cannot be
        served; Exhausted (ADAPTERS_BUSY) if those in use leave no room.
        """
        acquired: list[tuple[ResidentAdapter, float]] = []
        try:
            for digest, weight in wanted:
                acquired.append((self._pin(digest), weight))
        except LorauterError:
            self.release(tuple(acquired))
            raise
        return tuple(acquired)

    def release(self, adapters: AdapterSet) -> None:
        """Unpins what acquire() returned."""
        with self._lock:
            for adapter, _ in adapters:
                entry = self._entries[adapter.digest]
                entry.pins -= 1
                if entry.pins == 0:
                    metrics.PINNED_ADAPTERS.dec()

    def resident(self) -> list[str]:
        """Returns the digests of the adapters in memory, least recently used first."""
        with self._lock:
            return list(self._entries)

    def size_bytes(self) -> int:
        """Returns how many bytes the adapters take that are in memory or on their way there."""
        with self._lock:
            return self._size_bytes

    def pinned(self) -> int:
        """Returns how many adapters are in use."""
        with self._lock:
            return sum(entry.pins > 0 for entry in self._entries.values())

    def quarantined(self) -> dict[str, str]:
        """Returns why stored adapters were refused, by digest; each is looked at again when it changes."""
        return self._quarantine.reasons()

    def _pin(self, digest: str) -> ResidentAdapter:
        while True:
            with self._lock:
                entry = self._entries.get(digest)
                if entry is not None:
                    if entry.pins == 0:
                        metrics.PINNED_ADAPTERS.inc()
                    entry.pins += 1
                    self._entries.move_to_end(digest)
                    return entry.adapter
                loading = self._loading.get(digest)
                mine = loading is None
                if loading is None:
                    loading = self._loading[digest] = _Loading()
            if mine:
                self._load(digest, loading)
            else:
                loading.done.wait()
            if loading.error is not None:
                raise loading.error

    def _load(self, digest: str, loading: _Loading) -> None:
        try:
            adapter = self._read(digest)
            with self._lock:
                self._room_taken -= 1
                self._entries[digest] = _Entry(adapter)
                self._measure()
            metrics.ADAPTER_LOADS.labels("loaded").inc()
        except LorauterError as error:
            error.metadata.setdefault("field", "adapters")
            loading.error = error
            metrics.ADAPTER_LOADS.labels("refused").inc()
            _log.warning("engine.adapter.refused", digest=digest, reason=error.reason)
        except (OSError, MemoryError, RuntimeError) as error:
            loading.error = Exhausted(
                "ADAPTER_NOT_LOADED", f"adapter {digest} could not be loaded now: retry"
            )
            metrics.ADAPTER_LOADS.labels("failed").inc()
            _log.error("engine.adapter.failed", digest=digest, exc_info=error)
        finally:
            with self._lock:
                del self._loading[digest]
            loading.done.set()

    def _read(self, digest: str) -> ResidentAdapter:
        try:
            folder = self._store.path(digest)
        except NotFound:
            raise UnprocessableRequest(
                "ADAPTER_UNKNOWN", f"adapter {digest} is not in this engine's store: register it first"
            ) from None
        with self._quarantine.guarding(digest, folder):
            checked = check_adapter(folder, self._modules, self._limits)
            if checked.digest != digest:
                raise UnprocessableRequest(
                    "ADAPTER_CORRUPT", f"adapter {digest} has changed in the store: register it again"
                )
        values = sum(rank * sum(self._modules[name]) for name, rank in checked.ranks_by_module.items())
        size = values * self._placement.dtype.itemsize
        with self._lock:
            self._make_room(size)
            self._size_bytes += size
            self._room_taken += 1
        try:
            return make_resident(digest, read_weights(folder, self._limits, digest), self._placement)
        except BaseException:
            with self._lock:
                self._size_bytes -= size
                self._room_taken -= 1
            raise

    def _make_room(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise UnprocessableRequest(
                "ADAPTER_TOO_LARGE",
                f"the adapter needs {size_bytes} bytes; LORAUTER_ADAPTER_BYTES allows {self._max_bytes}",
            )
        idle = [digest for digest, entry in self._entries.items() if entry.pins == 0]
        while (
            self._size_bytes + size_bytes > self._max_bytes
            or len(self._entries) + self._room_taken >= self._max_count
        ):
            if not idle:
                raise Exhausted("ADAPTERS_BUSY", "the adapters in use fill the engine's memory: retry later")
            self._size_bytes -= self._entries.pop(idle.pop(0)).adapter.size_bytes
            metrics.ADAPTER_EVICTIONS.inc()

    def _measure(self) -> None:
        metrics.RESIDENT_ADAPTERS.set(len(self._entries))
        metrics.RESIDENT_BYTES.set(self._size_bytes)


def make_resident(digest: str, weights: Mapping[str, LoraWeights], placement: Placement) -> ResidentAdapter:
    """Moves an adapter's matrices to the model's device; its scales go into B before rounding."""
    size, largest = 0, 0.0
    modules: dict[str, Matrices] = {}
    for name, lora in weights.items():
        a = torch.from_numpy(lora.a.copy()).to(placement.device, placement.dtype)
        scaled = torch.from_numpy((lora.b * lora.scale).T.copy())
        b_t = scaled.to(placement.device, placement.dtype)
        columns = torch.zeros(a.shape[0], dtype=torch.long, device=placement.device)
        modules[name] = Matrices(a, b_t, columns, ((0, a.shape[0]),))
        size += (a.numel() + b_t.numel()) * a.element_size()
        largest = max(largest, float(a.abs().max()), float(b_t.abs().max()))
    is_tame = largest < math.sqrt(torch.finfo(placement.dtype).max)
    return ResidentAdapter(digest, modules, size, is_tame)


def normalise(pairs: Sequence[tuple[str, float]], max_adapters: int) -> tuple[tuple[str, float], ...]:
    """Returns (digest, weight) pairs sorted, weights of one adapter added, zero weights left out.

    Raises UnprocessableRequest (ADAPTER_UNKNOWN for what is no digest, TOO_MANY_ADAPTERS).
    """
    weights: dict[str, float] = {}
    for name, weight in pairs:
        try:
            digest = parse_digest(name)
        except InvalidArgument:
            raise UnprocessableRequest(
                "ADAPTER_UNKNOWN",
                f"adapter {name[:80]!r} is unknown: an adapter's id is its digest, sha256: and 64 hex digits",
                field="adapters",
            ) from None
        weights[digest] = weights.get(digest, 0.0) + weight
        if not math.isfinite(weights[digest]):
            raise UnprocessableRequest(
                "INVALID_WEIGHT", f"the weights of {digest} do not sum to a number", field="adapters"
            )
    if len(weights) > max_adapters:
        raise UnprocessableRequest(
            "TOO_MANY_ADAPTERS",
            f"{len(weights)} adapters in one request; {max_adapters} are allowed",
            field="adapters",
        )
    return tuple(sorted((digest, weight) for digest, weight in weights.items() if weight != 0.0))
