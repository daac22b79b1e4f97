"""Where an adapter goes: the same replica from all gateways, unless that has much more to do than others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BOUND = 1.25
"""A replica with over so many times the mean number of requests under way is passed over."""

LEAST_BOUND = 4
"""Under so many requests under way, none is."""


@dataclass(frozen=True, slots=True)
class Place:
    """A replica as a choice sees it.

    ``loads``: it loads adapters at run time. ``has_no_slot``: all its slots are in use, and not for the
    adapter in question. ``is_last``: only tried after all others.
    """

    replica: str
    in_flight: int
    loads: bool = False
    has_no_slot: bool = False
    is_last: bool = False


def rendezvous(name: str, replicas: Iterable[str]) -> list[str]:
    """Returns the replicas in an order that depends on ``name`` and on them alone.

    A replica that comes or goes moves only the names that it is first for. The highest hash of name and
    replica wins (Thaler and Ravishankar 1998).
    """

    def score(replica: str) -> bytes:
        return hashlib.blake2b(f"{name}\n{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=lambda replica: (score(replica), replica), reverse=True)


def load_bound(in_flight: Sequence[int]) -> float:
    """Returns how many requests a replica may have under way before its adapters go elsewhere."""
    return max(LEAST_BOUND, BOUND * sum(in_flight) / len(in_flight)) if in_flight else LEAST_BOUND


def ordered(name: str, places: Sequence[Place], turn: int) -> list[str]:
    """Returns the replicas in the order to try them in for an adapter, ``name`` empty for the base.

    Replicas that load adapters keep one order per name, those over the load bound or without a slot behind;
    all others, and all for the base, come by what they have under way, equals in rotation by ``turn``. Of
    both kinds, the one with less under way comes first.
    """
    if len(places) == 1:
        return [places[0].replica]
    found = []
    for is_last in (False, True):
        group = [place for place in places if place.is_last is is_last]
        kept = _by_name(name, [place for place in group if place.loads]) if name else []
        free = _by_load([place for place in group if not (place.loads and name)], turn)
        found += [place.replica for place in _merged(kept, free)]
    return found


def _by_name(name: str, places: Sequence[Place]) -> list[Place]:
    bound = load_bound([place.in_flight for place in places])
    by_id = {place.replica: place for place in places}
    preferred = [by_id[replica] for replica in rendezvous(name, by_id)]
    return sorted(preferred, key=lambda place: (place.has_no_slot, place.in_flight > bound))


def _by_load(places: Sequence[Place], turn: int) -> list[Place]:
    start = turn % len(places) if places else 0
    return sorted([*places[start:], *places[:start]], key=lambda place: place.in_flight)


def _merged(kept: list[Place], free: list[Place]) -> list[Place]:
    found = []
    kept, free = kept[::-1], free[::-1]
    while kept and free:
        takes_kept = not kept[-1].has_no_slot and kept[-1].in_flight <= free[-1].in_flight
        found.append((kept if takes_kept else free).pop())
    return found + kept[::-1] + free[::-1]
