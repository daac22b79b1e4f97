"""What each server takes as one ordinary adapter: ranks that its kernels have, layers that it adapts.

Read in vLLM 0.33 (config/lora.py, lora/peft_helper.py) and TGI 3.3 (adapters/lora.py, punica_sgmv).
"""

from __future__ import annotations

from dataclasses import dataclass

from lorauter.errors import InvalidArgument, UnprocessableRequest

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
TGI_RANKS = (8, 16, 32, 64, 128)
MAX_RANK = 512
"""Largest rank of a composite, whoever serves it."""

_PROJECTIONS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
        *("gate_proj", "up_proj", "down_proj", "c_fc", "c_proj"),
    }
)


@dataclass(frozen=True, slots=True)
class Server:
    """Who is to load a composite.

    ``ranks`` are allowed, ascending, and no others; if it is empty, all up to ``max_rank`` are. ``layers``
    holds the last parts of the names of modules that the server adapts; if it is empty, it adapts all.
    """

    kind: str
    max_rank: int
    ranks: tuple[int, ...] = ()
    layers: frozenset[str] = frozenset()

    def padded(self, rank: int) -> int:
        """Returns the smallest allowed rank that holds ``rank``.

        Raises UnprocessableRequest (COMPOSITE_RANK_TOO_LARGE).
        """
        if rank > self.max_rank:
            raise UnprocessableRequest(
                "COMPOSITE_RANK_TOO_LARGE",
                f"the ranks of the adapters sum to {rank}; {self.kind} takes {self.max_rank}: "
                "use fewer adapters, or allow a truncation",
                field="adapters",
                rank=str(rank),
                max_rank=str(self.max_rank),
            )
        return next((allowed for allowed in self.ranks if allowed >= rank), rank)

    def check_layers(self, layers: frozenset[str]) -> None:
        """Raises UnprocessableRequest (COMPOSITE_LAYER_UNSUPPORTED) for layers that it would leave out."""
        lost = sorted(layers - self.layers) if self.layers else []
        if lost:
            raise UnprocessableRequest(
                "COMPOSITE_LAYER_UNSUPPORTED",
                f"{self.kind} does not adapt {', '.join(lost)}: use adapters that leave it alone, "
                "or another backend",
                field="adapters",
            )


def peft() -> Server:
    """PEFT itself, which takes any rank and any linear layer."""
    return Server("peft", MAX_RANK)


def vllm(max_lora_rank: int = 16) -> Server:
    """A vLLM that was started with this ``--max-lora-rank``; raises InvalidArgument (INVALID_FIELD)."""
    if max_lora_rank not in VLLM_RANKS:
        allowed = ", ".join(map(str, VLLM_RANKS))
        raise _invalid("max_lora_rank", f"is {max_lora_rank}; vLLM composites take {allowed}")
    ranks = tuple(rank for rank in VLLM_RANKS if rank <= max_lora_rank)
    layers = _PROJECTIONS | {"gate_up_proj", "c_attn", "lm_head"}
    return Server("vllm", max_lora_rank, ranks, layers)


def tgi(shards: int = 1) -> Server:
    """A TGI on so many shards; raises InvalidArgument (INVALID_FIELD).

    TGI pads a rank to at least 8 for each shard and then scales all but the first layer type by the padded
    rank: only ranks that need no padding are right.
    """
    ranks = tuple(rank for rank in TGI_RANKS if rank >= TGI_RANKS[0] * shards)
    if shards < 1 or not ranks:
        raise _invalid("shards", f"is {shards}; TGI composites take 1 to {TGI_RANKS[-1] // TGI_RANKS[0]}")
    return Server("tgi", ranks[-1], ranks, _PROJECTIONS)


def _invalid(field: str, message: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FIELD", f"{field} {message}", field=field)
