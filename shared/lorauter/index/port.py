"""The port of the index: what publishers and readers of snapshots rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorauter.routing.candidates import CANDIDATES, Probe
from lorauter.routing.model import Snapshot, Vector


@dataclass(frozen=True, slots=True, eq=False)
class ExampleSet:
    """The unit vectors, shape (n, d) float32, of a task version's embedded examples, in their order."""

    pool_id: str
    task_id: str
    version: int
    vectors: Vector


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What publishing did.

    ``digest`` is the root's; ``written`` and ``deleted`` count points; ``moved`` is False where the
    marker already named a newer generation, which then stays published.
    """

    digest: str
    written: int
    deleted: int
    moved: bool


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """How the index differs from what it should hold.

    ``current``: the marker names the expected root. ``missing`` points are gone; ``surplus`` points are
    of no use, left by publishers that died, and harm nobody.
    """

    current: bool
    missing: int
    surplus: int

    @property
    def is_sound(self) -> bool:
        """Whether readers get exactly the expected snapshot."""
        return self.current and not self.missing


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Which tasks of a pool to look for, among those embedded by one encoder.

    Each vector of ``probe`` is a search by inner product with raw centroids, its terms are one with raw term
    frequencies that finds only tasks which share a term; each returns at most ``limit`` tasks. Only tasks
    that carry all ``tags`` and are not among ``exclude_tasks`` take part.
    """

    tenant: str
    encoder_digest: str
    pool_id: str
    probe: Probe
    tags: frozenset[str] = frozenset()
    exclude_tasks: frozenset[str] = frozenset()
    limit: int = CANDIDATES


@dataclass(frozen=True, slots=True)
class Found:
    """What the searches returned together: ``tasks`` by id and address, in no order.

    ``root`` is the digest of the root that was published after they ended. A snapshot of this very root had
    all its tasks in the index meanwhile; tasks of other addresses than its own are to be dropped.
    """

    root: str
    tasks: frozenset[tuple[str, str]]


class SnapshotIndex(Protocol):
    """Holds the newest published snapshot of each tenant.

    All methods raise Unavailable (INDEX_UNAVAILABLE) when the index cannot be reached. Publishing is
    idempotent, and never moves a tenant's marker to a lower generation.
    """

    def published(self, tenant: str) -> tuple[int, str] | None:
        """Returns the published generation and its root's digest, or None for an empty index."""

    def carrier(self, tenant: str) -> Mapping[str, str]:
        """Returns the place in a trace that the published marker was moved at, for lorauter.tracing."""

    def markers(self, tenants: Sequence[str] = ()) -> Mapping[str, tuple[int, str]]:
        """Returns ``published`` of every tenant, or of these, that has something published; cheap.

        Each is as of a moment during the call.
        """

    def read(self, tenant: str, held: Snapshot | None = None) -> Snapshot:
        """Returns the published snapshot, of exactly one generation.

        ``held`` itself is returned if it is still the published one; its tasks are reused otherwise.
        Raises NotFound (INDEX_EMPTY) if nothing is published, Unavailable (INDEX_INCOMPLETE) if points
        that the root names are gone.
        """

    def publish(
        self, snapshot: Snapshot, examples: Sequence[ExampleSet], *, thorough: bool = False
    ) -> PublishReport:
        """Writes what is missing, moves the marker forward, then deletes what it made unreachable.

        ``snapshot.digest`` is not read. ``examples`` are those of the snapshot's tasks; vectors are
        finite and of one dimension. ``thorough`` looks at every point: it also completes sets of examples
        that lost some, and deletes what dead publishers left.
        """

    def verify(self, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> IndexCheck:
        """Compares the index with a snapshot of the generation that should be published."""

    def search(self, wanted: Search) -> Found:
        """Returns the tasks that searches find, to be scored exactly by the caller; threads may share this.

        A server may search approximately. Raises NotFound (INDEX_EMPTY) if nothing is published.
        """

    def drop_former(self, unused_seconds: float) -> int:
        """Drops the collections of encoders that no published snapshot is of, and returns how many.

        Those are dropped that every call of this index found unused for ``unused_seconds``: until then they
        are the quick way back. Call it now and then.
        """

    def clear(self, tenant: str) -> None:
        """Deletes all of a tenant, marker first; for a registry that was restored or made anew."""

    def forget(self, tenant: str) -> None:
        """Lets go of what is remembered to read a tenant's next snapshot sooner."""

    def close(self) -> None:
        """Releases connections."""
