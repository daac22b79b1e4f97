"""What a composite is made from, and the name that this gives it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorauter.identifiers import COMPOSITE_PREFIX
from lorauter.lora.precision import PRECISIONS, Precision
from lorauter.lora.servers import Server
from lorauter.lora.store import parse_digest
from lorauter.lora.strict import refused

MAX_MEMBERS = 16
"""Most adapters in one composite."""

WEIGHT_DECIMALS = 6
"""Weights are rounded to so many decimals before anything else, so that a name means one composite."""

_FORMAT = 1
"""Grows when the same recipe is written in another way."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base model: the name that servers know it by, the digest of its weights (or, where none is known,
    its revision), and (in, out) of its linear layers by full module name."""

    model: str
    digest: str
    modules: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A composition to be written for a server: ``members`` are (digest, weight), sorted, none of them 0."""

    base: Base
    members: tuple[tuple[str, float], ...]
    server: Server
    precision: Precision
    truncate_to: int | None

    @property
    def digest(self) -> str:
        """Returns "sha256:" and 64 hex digits over all that decides the composite's content."""
        content = {**self.to_json(), "modules": {k: list(v) for k, v in self.base.modules.items()}}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Returns ``mix-`` and 16 hex digits."""
        return COMPOSITE_PREFIX + self.digest.removeprefix("sha256:")[:16]

    def to_json(self) -> dict[str, Any]:
        """Returns what stands beside a composite's files."""
        return {
            "format": _FORMAT,
            "base_model": self.base.model,
            "base_digest": self.base.digest,
            "members": [{"digest": digest, "weight": weight} for digest, weight in self.members],
            "server": self.server.kind,
            "ranks": list(self.server.ranks),
            "max_rank": self.server.max_rank,
            "precision": self.precision,
            "truncate_to": self.truncate_to,
        }


def make_recipe(
    base: Base,
    weighted: Sequence[tuple[str, float]],
    server: Server,
    precision: Precision = "bfloat16",
    truncate_to: int | None = None,
) -> Recipe:
    """Returns the recipe of a weighted set of adapters' digests, in any order.

    Weights of one adapter are added, then rounded to WEIGHT_DECIMALS; adapters of weight 0 fall out. Raises
    UnprocessableRequest (NO_ADAPTERS, TOO_MANY_ADAPTERS, INVALID_WEIGHT, INVALID_FIELD) or InvalidArgument
    (INVALID_DIGEST).
    """
    if precision not in PRECISIONS:
        raise refused("INVALID_FIELD", f"precision must be one of {', '.join(PRECISIONS)}", field="precision")
    sums: dict[str, float] = {}
    for position, (digest, weight) in enumerate(weighted):
        known = parse_digest(digest)
        sums[known] = sums.get(known, 0.0) + float(weight)
        if not math.isfinite(sums[known]):
            raise refused(
                "INVALID_WEIGHT",
                f"the weight of adapter {position} is {weight}: give finite numbers with a finite sum",
                field=f"adapters[{position}].weight",
            )
    rounded = {digest: round(weight, WEIGHT_DECIMALS) for digest, weight in sums.items()}
    members = tuple(sorted((digest, weight) for digest, weight in rounded.items() if weight != 0))
    if not members:
        raise refused(
            "NO_ADAPTERS", "no adapter has a weight that is not 0: that is the base itself", field="adapters"
        )
    if len(members) > MAX_MEMBERS:
        raise refused(
            "TOO_MANY_ADAPTERS",
            f"{len(members)} adapters in one composite; {MAX_MEMBERS} are allowed",
            field="adapters",
        )
    return Recipe(base, members, server, precision, truncate_to)
