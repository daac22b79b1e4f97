"""Lets a site come to rest, and asserts what then must hold."""

from __future__ import annotations

from typing import Any

from benchmarks.faults_changes import WORDS
from benchmarks.sequences_judge import Listed, decisions, differences, found, points, stored_points, wanted
from benchmarks.sequences_process import Outcome
from benchmarks.sequences_site import TENANT, Site, empty
from lorauter.errors import NotFound
from lorauter.index import QdrantIndex
from lorauter.index.codec import encode, root_digest
from lorauter.routing.model import Snapshot
from lorauter_registry.domain.adapter_requests import ListProfiles
from lorauter_registry.domain.requests import GetById
from lorauter_worker.service import outbox
from lorauter_worker.service.projection import Projector

ROUNDS = 12
"""After so many sweeps and time enough nothing may be left to do."""

QUERIES = tuple(f"{word} of the {WORDS[0]}" for word in WORDS[:3])


class Settling:
    """What was acknowledged and what readers saw so far, and what must be true of a site at rest."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._acknowledged: dict[tuple[str, str], str | None] = {}
        self._held: Snapshot | None = None
        self._seen = 0
        self._was_emptied = False
        self._repairs, self._rebuilds = site.repairs()

    def profiles(self, pool: str) -> list[str]:
        """Returns the digests of a pool's profiles; none of a pool that does not exist."""
        try:
            known = self._site.registry.list_profiles(ListProfiles(pool=pool)).profiles
        except NotFound:
            return []
        return sorted(each.digest for each in known)

    def note(self, method: str, request: Any, answer: Any) -> None:
        """Remembers what a change was acknowledged with."""
        if method == "delete_task":
            self._acknowledged["task", request.id] = None
        elif method == "activate_profile":  # it answers with the profile, and changes its pool
            pool = self._site.registry.get_pool(GetById(id=request.pool))
            self._acknowledged["pool", pool.id] = pool.etag
        elif hasattr(answer, "etag"):
            self._acknowledged[type(answer).__name__.lower(), answer.id] = answer.etag

    def index_was_emptied(self) -> None:
        """Says that readers may see older generations from now on, and that a rebuild is no repair."""
        self._seen, self._held, self._was_emptied = 0, None, True

    def read(self) -> None:
        """Reads as a router does: a whole generation, none older than the last."""
        try:
            self._held = self._site.reader.read(TENANT, self._held)
        except NotFound:
            assert self._seen == 0, "what was published is gone"
            return
        assert root_digest(self._held) == self._held.digest
        assert self._held.generation >= self._seen, "the published generation went back"
        self._seen = self._held.generation

    def settle(self) -> None:
        """Brings everything that is not halted to rest, then asserts that the index equals the registry."""
        for _ in range(ROUNDS):
            self._site.pass_time()
            self._site.sweep()  # which also asks for a reconciliation
            names, self._site.queue.names = set(self._site.queue.names), []
            if "index" in names:
                self._do("index")
            is_owed = outbox.is_owed(self._site.engine, TENANT)
            self._do("reconcile")
            if not is_owed:
                break
        else:
            raise AssertionError("there is always work left")
        self.read()
        there = Listed.of(self._site.registry)
        assert there.etags() == {key: etag for key, etag in self._acknowledged.items() if etag is not None}
        self._assert_index(there)
        repairs, rebuilds = self._site.repairs()
        assert repairs == self._repairs, "reconciliation had to repair the index"
        assert self._was_emptied or rebuilds == self._rebuilds, "reconciliation had to build the index anew"

    def _do(self, name: str) -> None:
        worker = self._site.start_worker()
        work = worker.indexer.reconcile if name == "reconcile" else worker.indexer.drain
        assert worker.run(work) is Outcome.DONE

    def _assert_index(self, there: Listed) -> None:
        """The content that is published is that of the registry, projected anew and worked out otherwise."""
        site, snapshot = self._site, self._held
        projection = Projector(site.engine, site.encoder, site.settings.representation_examples).project(
            TENANT, float("inf")
        )
        if projection is None:
            assert snapshot is None
            return
        assert snapshot is not None
        assert snapshot.generation == site.generation()
        tree = encode(projection.snapshot)
        held = points(tree, projection.snapshot, projection.examples)
        wrong, surplus = differences(stored_points(site.index_client), held)
        assert not wrong, "\n".join(wrong)
        halted = any(worker.is_halted for worker in site.workers)
        assert halted or not surplus, f"{surplus} points are of no use"
        assert found(snapshot) == wanted(there, site.registry, site.encoder)
        empty(site.fresh_client)
        built = QdrantIndex(site.fresh_client)
        built.publish(projection.snapshot, projection.examples)
        anew = decisions(built.read(TENANT), site.encoder, QUERIES)
        assert decisions(snapshot, site.encoder, QUERIES) == anew
