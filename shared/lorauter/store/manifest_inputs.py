"""Reads what a pool manifest is proposed from: tasks, scores, traffic, adapters, and who will load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlmodel import Session, col, select

from lorauter.identifiers import BASE
from lorauter.lora.layout import Layout
from lorauter.lora.recipe import Base
from lorauter.lora.servers import tgi
from lorauter.manifests import Candidate, Footprints, Measured, Member, Target, content_of, traffic_shares
from lorauter.routing.model import ADAPTERS_PATH
from lorauter.store import tables
from lorauter.store.measured import best_affinities, measured_tasks
from lorauter.store.serving import routed_version

MOST_DECISIONS = 20_000
"""The newest decisions of a pool that say what its traffic is."""

MOST_AFFINITIES = 64
"""Of a task, best first: as many as routers know."""

_TRAFFIC = text("""
SELECT entry ->> 'task_id' AS task, sum((entry ->> 'probability')::float8) AS mass FROM (
    SELECT tasks FROM decision WHERE tenant = :tenant AND pool = :pool ORDER BY time DESC, id DESC LIMIT :most
) AS newest CROSS JOIN LATERAL jsonb_array_elements(newest.tasks) AS entry GROUP BY 1
""")

_VERSIONS = text(
    "SELECT a.id, a.aliases, v.version, v.state, v.digest FROM adapter a "
    "JOIN adapter_version v ON v.tenant = a.tenant AND v.adapter_id = a.id "
    "WHERE a.tenant = :tenant AND a.pool = :pool"
)

LayoutOf = Callable[[str], Layout | str]
"""Returns the layout of a stored adapter by its digest, or why it cannot be read."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known of a pool at one moment.

    ``versions``: the routed version and its digest, by adapter. ``affinities``: rows as best_affinities()
    returns them. ``shards``, ``max_rank`` (0: any) and ``adapters_path`` are those of the TGI backends: the
    most shards, the smallest largest rank, and the path of the first by id.
    """

    pool: tables.Pool
    versions: Mapping[str, tuple[int, str]]
    affinities: Sequence[Any]
    compositions: Sequence[tables.Composition]
    traffic: Mapping[str, float]
    shards: int
    max_rank: int
    adapters_path: str

    def target(self, memory_bytes: int) -> Target:
        """Returns who loads a manifest of so much memory."""
        base = Base(
            self.pool.base_model,
            self.pool.weights_digest or f"revision:{self.pool.base_revision}",
            self._modules(),
        )
        return Target(self.pool.id, base, tgi(self.shards), memory_bytes, self.adapters_path)

    def candidates(self, layout_of: LayoutOf) -> tuple[list[Candidate], Measured]:
        """Returns what could be loaded, and what was measured of it.

        A composition that beat the best single adapter of its task is worth that adapter's score and its
        gain. Raises FailedPrecondition (POOL_MODULES_UNKNOWN).
        """
        footprints = Footprints(self._modules(), tgi(self.shards), self.max_rank)
        found = _Found(footprints, layout_of)
        tasks, best = self._tasks(found)
        for row in self.compositions:
            if row.task_id in best and row.gain > row.gain_error and self._is_routed(row):
                members = [
                    Member(m["adapter_id"], m["version"], m["digest"], m["weight"]) for m in row.members
                ]
                found.add(members, row.task_id, min(1.0, best[row.task_id] + row.gain))
        return found.candidates, found.measured(tasks, self.traffic)

    def _modules(self) -> dict[str, tuple[int, int]]:
        return {name: (shape[0], shape[1]) for name, shape in self.pool.modules.items()}

    def _tasks(self, found: _Found) -> tuple[dict[str, float], dict[str, float]]:
        """Adds single adapters; returns what the base scores, and the best score, of the measured tasks."""
        complete = {row.task_id for row in self.affinities if row.adapter_id == BASE or row.imported}
        base = dict.fromkeys(sorted(complete), 0.0)
        best = dict(base)
        for row in self.affinities:
            if row.task_id not in complete:
                continue
            best[row.task_id] = max(best[row.task_id], row.shrunk_score)
            if row.adapter_id == BASE:
                base[row.task_id] = row.shrunk_score
            else:
                _, digest = self.versions[row.adapter_id]
                member = Member(row.adapter_id, row.adapter_version, digest)
                found.add([member], row.task_id, row.shrunk_score)
        return base, best

    def _is_routed(self, row: tables.Composition) -> bool:
        return all(
            self.versions.get(each["adapter_id"]) == (each["version"], each["digest"]) for each in row.members
        )


def read_inputs(session: Session, pool: tables.Pool) -> Inputs:
    """Returns what is known of a pool; the session sees one moment."""
    tenant = pool.tenant
    versions = _routed(session, pool)
    routed = {adapter_id: version for adapter_id, (version, _) in versions.items()}
    values = {"tenant": tenant, "pool": pool.id, "most": MOST_DECISIONS}
    traffic = {row.task: row.mass for row in session.connection().execute(_TRAFFIC, values)}
    composition, task, backend = tables.Composition, tables.Task, tables.Backend
    compositions = (
        select(composition)
        .join(task)
        .where(
            composition.tenant == tenant,
            task.pool == pool.id,
            composition.task_version == task.version,
        )
    )
    instances = (
        select(backend)
        .where(backend.tenant == tenant, backend.pool == pool.id)
        .where(backend.kind == "TGI", backend.state == "ACTIVE")
        .order_by(col(backend.id))
    )
    limits = [row.limits for row in session.exec(instances)]
    return Inputs(
        pool=pool,
        versions=versions,
        affinities=best_affinities(session, tenant, routed, MOST_AFFINITIES, pool.id),
        compositions=session.exec(compositions).all(),
        traffic=traffic,
        shards=max((limit.get("shards") or 1 for limit in limits), default=1),
        max_rank=min((limit["max_rank"] for limit in limits if limit.get("max_rank")), default=0),
        adapters_path=next((limit.get("adapters_path") or ADAPTERS_PATH for limit in limits), ADAPTERS_PATH),
    )


def _routed(session: Session, pool: tables.Pool) -> dict[str, tuple[int, str]]:
    aliases: dict[str, dict[str, int]] = {}
    states: dict[str, dict[int, str]] = {}
    digests: dict[tuple[str, int], str] = {}
    values = {"tenant": pool.tenant, "pool": pool.id}
    for adapter_id, named, number, state, digest in session.connection().execute(_VERSIONS, values):
        aliases[adapter_id] = named
        states.setdefault(adapter_id, {})[number] = state
        digests[adapter_id, number] = digest
    rivals = [id_ for id_, held in states.items() if list(held.values()).count("ACTIVE") > 1]
    measured = measured_tasks(session, pool.tenant, rivals) if rivals else {}
    routed = {id_: routed_version(aliases[id_], held, measured.get(id_, {})) for id_, held in states.items()}
    return {id_: (number, digests[id_, number]) for id_, number in routed.items() if number}


class _Found:
    """Candidates, each once, with their scores by task."""

    def __init__(self, footprints: Footprints, layout_of: LayoutOf) -> None:
        self.candidates: list[Candidate] = []
        self._footprints = footprints
        self._layout_of = layout_of
        self._places: dict[tuple[tuple[str, float], ...], int] = {}
        self._scores: dict[tuple[int, str], float] = {}

    def add(self, members: Sequence[Member], task_id: str, score: float) -> None:
        """Adds what a weighted set scores on a task."""
        content = content_of(members)
        if content not in self._places:
            self._places[content] = len(self.candidates)
            self.candidates.append(self._candidate(members))
        key = self._places[content], task_id
        self._scores[key] = max(score, self._scores.get(key, 0.0))  # equal content may have two names

    def measured(self, base: Mapping[str, float], traffic: Mapping[str, float]) -> Measured:
        """Returns all scores on these tasks, in their order."""
        tasks = list(base)
        columns = {task: column for column, task in enumerate(tasks)}
        known = [(row, columns[task], score) for (row, task), score in self._scores.items()]
        return Measured(
            shares=traffic_shares(traffic, tasks),
            base=np.array([base[task] for task in tasks], dtype=np.float64),
            rows=np.array([row for row, _, _ in known], dtype=np.int64),
            columns=np.array([column for _, column, _ in known], dtype=np.int64),
            scores=np.array([score for _, _, score in known], dtype=np.float64),
        )

    def _candidate(self, members: Sequence[Member]) -> Candidate:
        parts: list[tuple[Member, Layout]] = []
        for member in members:
            layout = self._layout_of(member.digest)
            if isinstance(layout, str):
                return Candidate(tuple(members), 0, 0, as_is=False, refusal=layout)
            parts.append((member, layout))
        return self._footprints.candidate(parts)
