"""Which adapters and composites a pool's TGI instances should load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorauter.errors import FailedPrecondition
from lorauter.identifiers import backend_name
from lorauter.lora.recipe import WEIGHT_DECIMALS, Base, make_recipe
from lorauter.lora.servers import Server
from lorauter.manifests.model import (
    Candidate,
    Entry,
    Floats,
    Integers,
    LeftOut,
    Measured,
    Member,
    Proposal,
)
from lorauter.manifests.render import most_entries
from lorauter.manifests.selection import LEAST_GAIN, Limit, Worth, select
from lorauter.routing.model import ADAPTERS_PATH

NAMED_LEFT_OUT = 20
"""How many of what is left out are named, most gain first."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who loads: instances of a pool with base ``base``, each a ``server`` with ``memory_bytes`` to fill.

    They find the adapter store at ``adapters_path``, whose length bounds how many entries a list has.
    """

    pool: str
    base: Base
    server: Server
    memory_bytes: int
    adapters_path: str = ADAPTERS_PATH


def propose(target: Target, candidates: Sequence[Candidate], measured: Measured) -> Proposal:
    """Returns what to load, whatever the order of the candidates; see lorauter.manifests.selection.

    Raises FailedPrecondition (MANIFEST_MEMORY_REQUIRED, NOTHING_MEASURED).
    """
    if target.memory_bytes <= 0:
        raise FailedPrecondition(
            "MANIFEST_MEMORY_REQUIRED",
            "how much memory adapters may take is not known: give memory_bytes, or set "
            "serving.manifest_memory_bytes of the pool",
            field="memory_bytes",
        )
    if not len(measured.base):
        raise FailedPrecondition(
            "NOTHING_MEASURED",
            f"nothing is measured on any task of pool {target.pool!r}: wait for its matching, or start one",
        )
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].members)
    ranked = [candidates[place] for place in order]
    worth = worth_of(measured, order)
    sizes = np.array([max(1, each.size_bytes) for each in ranked], dtype=np.int64)
    allowed = [not each.refusal for each in ranked]
    limit = Limit(sizes, allowed, target.memory_bytes, most_entries(target.adapters_path))
    chosen = select(worth, limit)
    reached = worth.best(chosen)
    losses = worth.losses(chosen)
    entries = sorted(
        (_entry(target, ranked[one], float(loss)) for one, loss in zip(chosen, losses, strict=True)),
        key=lambda entry: (-entry.gain, entry.name),
    )
    return Proposal(
        pool=target.pool,
        digest=manifest_digest(target.pool, entries),
        entries=tuple(entries),
        left_out=_left_out(ranked, worth.gains(reached), chosen, limit),
        memory_bytes=target.memory_bytes,
        expected_share=_share(worth.total(reached)),
        base_share=_share(worth.total(worth.base)),
    )


def expected_share(
    candidates: Sequence[Candidate], measured: Measured, loaded: Sequence[Sequence[Member]]
) -> float:
    """Returns the expected share, 0..1, where these member sets are loaded; unknown ones add nothing."""
    wanted = {content_of(members) for members in loaded}
    places = [place for place, each in enumerate(candidates) if content_of(each.members) in wanted]
    worth = worth_of(measured, range(len(candidates)))
    return _share(worth.total(worth.best(places)))


def content_of(members: Sequence[Member]) -> tuple[tuple[str, float], ...]:
    """Returns the digests with their rounded weights, sorted: what two entries have in common or not."""
    return tuple(sorted((each.digest, round(each.weight, WEIGHT_DECIMALS)) for each in members))


def manifest_digest(pool: str, entries: Sequence[Entry]) -> str:
    """Returns the sha256 of the canonical JSON of a pool and what is loaded, whatever it gains."""
    content = {
        "pool": pool,
        "entries": [
            {
                "name": entry.name,
                "rank": entry.rank,
                "members": [
                    [each.adapter_id, each.version, each.digest, round(each.weight, WEIGHT_DECIMALS)]
                    for each in entry.members
                ],
            }
            for entry in sorted(entries, key=lambda entry: entry.name)
        ],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def worth_of(measured: Measured, order: Sequence[int]) -> Worth:
    """Returns scores as shares of each task's best, base included, candidates in ``order``.

    A task on which nothing scores anything loses nothing: there the base is worth 1.
    """
    best = measured.base.copy()
    np.maximum.at(best, measured.columns, measured.scores)
    scale = np.where(best > 0, best, 1.0)
    base: Floats = np.where(best > 0, measured.base / scale, 1.0)
    rank = np.empty(len(order), dtype=np.int64)
    rank[np.asarray(order, dtype=np.int64)] = np.arange(len(order))
    # of 16 bits, where they suffice: those are sorted by their digits, in a tenth of the time
    by_candidate = rank[measured.rows].astype(np.uint16 if len(order) < 2**16 else np.int64)
    sorting = np.argsort(by_candidate, kind="stable")
    columns: Integers = measured.columns[sorting]
    starts = np.searchsorted(by_candidate[sorting], np.arange(len(order) + 1))
    values: Floats = measured.scores[sorting] / scale[columns]
    return Worth(measured.shares, base, starts.astype(np.int64), columns, values)


def _entry(target: Target, candidate: Candidate, gain: float) -> Entry:
    members = candidate.members
    if candidate.as_is:
        name = backend_name(members[0].digest)
    else:
        weighted = [(each.digest, each.weight) for each in members]
        name = make_recipe(target.base, weighted, target.server).name
    return Entry(name, members, candidate.rank, candidate.size_bytes, _share(gain))


def _left_out(
    ranked: Sequence[Candidate], gains: Floats, chosen: Sequence[int], limit: Limit
) -> tuple[LeftOut, ...]:
    taken = set(chosen)
    left = limit.room(chosen)
    places = [place for place in np.flatnonzero(gains > LEAST_GAIN).tolist() if place not in taken]
    places.sort(key=lambda place: (-round(float(gains[place]), 12), place))
    return tuple(
        LeftOut(each.members, each.size_bytes, _share(gain), _why(each, limit, left, len(chosen)))
        for each, gain in ((ranked[place], float(gains[place])) for place in places[:NAMED_LEFT_OUT])
    )


def _why(candidate: Candidate, limit: Limit, left: int, count: int) -> str:
    if candidate.refusal:
        return candidate.refusal
    if count >= limit.most:
        return f"{limit.most} entries are as many as the launcher's environment holds"
    if candidate.size_bytes > limit.budget:
        return f"it takes {candidate.size_bytes} bytes, more than the {limit.budget} there are"
    return f"it takes {candidate.size_bytes} bytes, and {left} are left; what is loaded adds more for each"


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 9)
