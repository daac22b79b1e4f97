"""How TGI would hold an adapter or a weighted set: as it is, written anew, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorauter.errors import FailedPrecondition
from lorauter.lora.layout import Layout
from lorauter.lora.servers import Server
from lorauter.manifests.model import Candidate, Member

BYTES_PER_WEIGHT = 2
"""TGI holds adapters in the model's precision, bfloat16 or float16."""


class Footprints:
    """Tells how a server holds adapters of one base model."""

    def __init__(self, modules: Mapping[str, tuple[int, int]], server: Server, max_rank: int = 0) -> None:
        """``modules``: (in, out) of the base's linear layers by full name. ``max_rank``: 0, or a lower limit.

        Raises FailedPrecondition (POOL_MODULES_UNKNOWN).
        """
        if not modules:
            raise FailedPrecondition(
                "POOL_MODULES_UNKNOWN",
                "the base model's layers are not known: create the pool with base_path or modules",
            )
        self._server = server
        self._max_rank = min(max_rank or server.max_rank, server.max_rank)
        self._widths: dict[str, int] = {}
        self._of_layer: dict[str, set[str]] = {}
        for module, (width, out) in modules.items():
            layer = module.rpartition(".")[2]
            self._widths[layer] = self._widths.get(layer, 0) + width + out
            self._of_layer.setdefault(layer, set()).add(module)
        self._known: dict[Layout, tuple[int, int, bool, str]] = {}

    def candidate(self, members: Sequence[tuple[Member, Layout]]) -> Candidate:
        """Returns what the server would hold for a weighted set, or for an adapter alone (weight 1)."""
        ordered = sorted(members, key=lambda each: (-each[0].weight, each[0]))
        kept = tuple(member for member, _ in ordered)
        if len(ordered) == 1:
            layout = ordered[0][1]
            if layout not in self._known:
                self._known[layout] = self._held([layout])
            rank, size, as_is, refusal = self._known[layout]
        else:
            rank, size, as_is, refusal = self._held([layout for _, layout in ordered])
        return Candidate(kept, rank, size, as_is and kept[0].weight == 1, refusal)

    def _held(self, layouts: Sequence[Layout]) -> tuple[int, int, bool, str]:
        """Returns rank, bytes, whether the files serve as they are, and why they cannot be served."""
        layers = frozenset().union(*(layout.layers for layout in layouts))
        lost = sorted(layers - self._server.layers) if self._server.layers else []
        if lost:
            return 0, 0, False, f"{self._server.kind} does not apply {', '.join(lost)}"
        if strange := sorted(layers - self._widths.keys()):
            return 0, 0, False, f"the base model has no layer {', '.join(strange)}"
        needed = _needed_rank(layouts)
        if needed > self._max_rank:
            return 0, 0, False, f"its rank is {needed}; {self._server.kind} takes {self._max_rank}"
        rank = self._server.padded(needed)
        if rank > self._max_rank:
            return 0, 0, False, f"its rank becomes {rank}; {self._server.kind} takes {self._max_rank}"
        size = rank * sum(self._widths[layer] for layer in layers) * BYTES_PER_WEIGHT
        return rank, size, len(layouts) == 1 and rank == needed and self._is_whole(layouts[0]), ""

    def _is_whole(self, layout: Layout) -> bool:
        """Whether no kind of layer has a gap, which would drop the kind, and no pattern is needed."""
        adapted = {module for module, _ in layout.ranks}
        return layout.is_uniform and all(self._of_layer[layer] <= adapted for layer in layout.layers)


def _needed_rank(layouts: Sequence[Layout]) -> int:
    sums: dict[str, int] = {}
    for layout in layouts:
        for module, rank in layout.ranks:
            sums[module] = sums.get(module, 0) + rank
    return max(sums.values())
