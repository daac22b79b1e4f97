"""The base model in memory: prefill, decode and scoring passes over batches of weighted adapter sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from lorauter.errors import FailedPrecondition
from lorauter_engine.model.cache import SlotCache
from lorauter_engine.model.layers import BatchContext, adapt, gather
from lorauter_engine.model.plan import BatchPlan, plan_of_vectors

ALONE = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})
"""Model types whose last layer ends with an `mlp` after which nothing mixes the vectors of a text."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how precisely the model computes."""

    device: torch.device
    dtype: torch.dtype


def choose_placement(device: str, dtype: str) -> Placement:
    """Resolves `auto`: the GPU with bfloat16 if there is one, else the CPU with float32."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise FailedPrecondition("NO_GPU", "LORAUTER_DEVICE=cuda, but torch sees no GPU: use auto or cpu")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Placement(torch.device(device), getattr(torch, dtype))


class Network:
    """A causal language model whose linear layers take weighted adapter sets per row.

    Used by one thread at a time. ``modules`` holds (in, out) of the adaptable layers; ``context`` is the
    most tokens, prompt and answer, that a row may have.
    """

    def __init__(self, directory: Path, placement: Placement) -> None:
        if not (directory / "config.json").is_file():
            raise FailedPrecondition(
                "MODEL_UNREADABLE", f"LORAUTER_MODEL: {directory} holds no config.json: give a model's folder"
            )
        disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=placement.dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(
                "MODEL_UNREADABLE", f"LORAUTER_MODEL: no causal model in safetensors format there: {error}"
            ) from None
        config = model.config.get_text_config()
        # The attention of models that have no fused one adds the mask to its scores.
        self._takes_truth = model.config._attn_implementation == "sdpa"
        # The older name goes in transformers 5.40; a family may have only that one before.
        takes_cache = "cache" in signature(model.forward).parameters
        self._cache_argument = "cache" if takes_cache else "past_key_values"
        self.placement = placement
        self.vocabulary = int(config.vocab_size)
        self.context = _context(config)
        self.eos_ids = _eos_ids(model)
        self.cache = SlotCache()
        self._batch = BatchContext()
        model.eval().requires_grad_(False)
        model.to(placement.device)
        self.modules: Mapping[str, tuple[int, int]] = adapt(model, self._batch)
        self._gathered = gather(model, _last_parts(model, config.model_type), self._batch)
        self._model = model
        self._prove(config.model_type)

    @torch.inference_mode()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        plan: BatchPlan | None,
        wanted: Sequence[range],
        first_slot: int | None,
    ) -> Tensor:
        """Runs whole prompts; returns the logits (N, vocabulary) float32 of the wanted positions, in order.

        ``wanted[i]`` are positions of row i. With ``first_slot`` the keys and values go to the cache's
        slots from there on.
        """
        longest = max(map(len, prompts))
        # Padding stands on the right, where a causal model's real tokens never look.
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        rows = [row for row, positions in enumerate(wanted) for _ in positions]
        self._want(
            rows,
            [position for positions in wanted for position in positions],
            plan,
            plan_of_vectors(plan, rows, self._gathered) if plan else None,
        )
        if first_slot is not None:
            self.cache.begin_prefill(first_slot, len(prompts), longest)
        places = torch.arange(longest, device=self.placement.device)[None, :]
        return self._run(ids, places, None, first_slot is not None)

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], lengths: Sequence[int], plan: BatchPlan | None) -> Tensor:
        """Adds one token to each of the first slots; returns logits (rows, vocabulary) float32.

        ``lengths[i]`` is how many tokens slot i holds already.
        """
        mask = self.cache.begin_decode(lengths, self.placement.device)
        # Every row is one vector, which is wanted: the plan is the same.
        self._want(range(len(tokens)), [0] * len(tokens), plan, plan)
        ids = torch.tensor(tokens, dtype=torch.long)[:, None]
        places = torch.tensor(lengths, device=self.placement.device)[:, None]
        if not self._takes_truth:
            mask = torch.zeros_like(mask, dtype=self.placement.dtype).masked_fill(~mask, float("-inf"))
        return self._run(ids, places, mask, True)

    @torch.inference_mode()
    def _prove(self, model_type: str) -> None:
        """Raises FailedPrecondition unless rows that come, move and go say what whole passes say."""
        first, second = ([token % self.vocabulary for token in text] for text in ([2, 3, 4, 5, 6], [7, 8, 9]))
        try:
            self.prefill([first], None, [range(4, 5)], 0)
            self.prefill([second], None, [range(2, 3)], 1)
            both = self.decode([second[0], first[0]], [5, 3], None)
            self.cache.move([1], [0], 4)
            self.cache.clear(slice(1, 2), 6)
            found = torch.cat([both, self.decode([first[1]], [4], None)])
            texts = [[*first, second[0]], [*second, first[0]], [*second, *first[:2]]]
            whole = [self.prefill([text], None, [range(len(text) - 1, len(text))], None) for text in texts]
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = f"its rows cannot be decoded side by side: {type(error).__name__}: {error}"
            raise _unsupported(model_type, why) from error
        self.cache.drop()
        expected = torch.cat(whole)
        # Rounding to 16 bits may change the experts that a token is sent to.
        bound = 1e-2 if self.placement.dtype is torch.float32 else 0.5
        if not (found - expected).abs().max() <= bound * expected.abs().max().clamp_min(1.0):
            raise _unsupported(model_type, "rows decoded side by side say something else than whole passes")

    def _want(
        self,
        rows: Sequence[int],
        positions: Sequence[int],
        plan: BatchPlan | None,
        plan_of_wanted: BatchPlan | None,
    ) -> None:
        device = self.placement.device
        self._batch.plan = plan
        self._batch.plan_of_wanted = plan_of_wanted
        self._batch.rows = torch.tensor(rows, dtype=torch.long, device=device)
        self._batch.positions = torch.tensor(positions, dtype=torch.long, device=device)

    def _run(self, ids: Tensor, places: Tensor, mask: Tensor | None, cached: bool) -> Tensor:
        output = self._model(
            input_ids=ids.to(self.placement.device),
            position_ids=places,
            attention_mask=mask,
            use_cache=cached,
            **{self._cache_argument: self.cache if cached else None},
        )
        logits: Tensor = output.logits
        return logits.float()


def _last_parts(model: Any, model_type: str) -> list[Any]:
    """Returns what comes last in a forward pass and treats every vector alone: at least the output layer."""
    head = model.get_output_embeddings()
    if model_type not in ALONE:
        return [head]
    decoder = model.get_decoder()
    return [(decoder.h if model_type == "gpt2" else decoder.layers)[-1].mlp, head]


def _unsupported(model_type: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "MODEL_UNSUPPORTED", f"LORAUTER_MODEL: a model of type {model_type} cannot be served: {why}"
    )


def _context(config: Any) -> int:
    lengths = ("max_position_embeddings", "n_positions", "max_seq_len")
    context = next((int(length) for name in lengths if (length := getattr(config, name, None))), 0)
    if not context:
        raise _unsupported(config.model_type, "its config.json says no max_position_embeddings: add it")
    kinds = getattr(config, "layer_types", None)
    if kinds and all(kind == "full_attention" for kind in kinds):
        return context
    # Within its window a sliding layer is an ordinary one; beyond it the cache would have to forget.
    names = ("sliding_window", "attention_chunk_size", "window_size")
    return min([context, *(int(window) for name in names if (window := getattr(config, name, None)))])


def _eos_ids(model: Any) -> frozenset[int]:
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, "eos_token_id", None)
        if value is not None:
            return frozenset(value if isinstance(value, list) else [value])
    return frozenset()
