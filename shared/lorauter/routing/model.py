"""What the router knows: the projection of one generation of the registry.

Plain immutable values on numpy arrays; the index stores them, the strategies read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

ADAPTERS_PATH = "/adapters"
"""Where a backend finds the adapter store if nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """Measured score of an adapter version on a task version.

    ``adapter_id`` is ``base`` and ``adapter_version`` 0 for the bare model; ``score`` and
    ``standard_error`` are in 0..1; ``count`` is the number of validation examples behind them.
    """

    adapter_id: str
    adapter_version: int
    score: float
    count: int
    standard_error: float


@dataclass(frozen=True, slots=True)
class Composition:
    """What a weighted set of adapters scored on ``count`` examples of a task that did not choose it.

    ``members``: (adapter id, version, weight), heaviest first; weights are above 0 and sum to 1. ``score`` is
    in 0..1; ``gain``, -1..1, is the mean paired difference to the best single arm; both with their errors.
    """

    name: str
    members: tuple[tuple[str, int, float], ...]
    score: float
    count: int
    standard_error: float
    gain: float
    gain_error: float

    @property
    def wins(self) -> bool:
        """Whether it beats the best single arm beyond one standard error."""
        return self.gain > self.gain_error


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A task's representation and what was measured on it.

    ``centroid`` is the float32 mean, shape (d,), of the unit vectors of its examples' inputs, not
    normalised. ``terms`` maps 32-bit token hashes to raw term frequencies. ``affinities`` are the
    best 64, best first, the base always among them where it was measured; empty until measured.
    ``compositions`` are those that were measured, largest gain first.
    ``address`` names all of this in the index; empty until a task was read from there.
    """

    task_id: str
    version: int
    metric: str
    tags: frozenset[str]
    example_count: int
    centroid: Vector
    terms: Mapping[int, float]
    affinities: tuple[Affinity, ...]
    address: str = ""
    compositions: tuple[Composition, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether any adapter was measured on the current version."""
        return bool(self.affinities)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version of an adapter that may be served.

    ``routable`` versions take part in decisions; the others may only be pinned (until
    ``pins_until``, Unix seconds, where it is not None). ``refusal`` is a reason why even pins are
    refused, with ``successor`` where there is one. ``rank``: of its LoRA, 0 where it is not known.
    """

    adapter_id: str
    version: int
    digest: str
    routable: bool
    aliases: tuple[str, ...] = ()
    pins_until: float | None = None
    refusal: str = ""
    successor: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Backend:
    """An inference server of a pool, and what each of its replicas can do.

    0 means 1 adapter slot, the kind's own ``max_rank``, that it is not known how many requests run at a time,
    and 1 shard. ``adapters_path`` is where it finds the adapter store.
    """

    backend_id: str
    kind: str
    url: str
    draining: bool
    adapter_slots: int = 0
    max_rank: int = 0
    max_concurrent_requests: int = 0
    adapters_path: str = ADAPTERS_PATH
    shards: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """How decisions are served where a backend cannot do as decided.

    ``refuse_degraded``: whether the request is refused then. ``compose_on_demand``: whether compositions are
    written and loaded when they are decided.
    """

    refuse_degraded: bool = False
    compose_on_demand: bool = False


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What a TGI instance loads under ``name``, its folder in the adapter store.

    ``members``: (digest, weight); one of weight 1 is that adapter itself. ``rank`` is the entry's own.
    """

    name: str
    members: tuple[tuple[str, float], ...]
    rank: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What TGI instances of a pool load at start-up; ``digest`` is that of its content."""

    digest: str
    entries: tuple[ManifestEntry, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """All that is fitted over a pool's validation sets: constants and figures of the fit by name.

    ``scatter`` is how examples differ within their tasks, as lorauter.routing.whitening packs it, float16
    (d (d + 1) / 2,); None where nothing can be told. The digest covers the constants alone.
    """

    digest: str
    constants: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)
    scatter: NDArray[np.float16] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A base model with its tasks, adapters, backends and routing profile.

    ``manifests`` are those that instances may have loaded: the published one and the one before it, newest
    first.
    """

    pool_id: str
    base_model: str
    base_model_aliases: tuple[str, ...]
    untypical_policy: str
    profile: Profile
    tasks: tuple[Task, ...]
    adapters: tuple[Adapter, ...]
    backends: tuple[Backend, ...]
    serving: Serving = Serving()
    manifests: tuple[Manifest, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything a router needs, of exactly one generation of one tenant."""

    tenant: str
    generation: int
    digest: str
    encoder_digest: str
    pools: Mapping[str, Pool]
