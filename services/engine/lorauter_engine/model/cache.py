"""A key-value cache of slots: rows of any length side by side, that come and go one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_BLOCK = 64
"""Slots grow by this many tokens at least."""


class SlotCache(Cache):
    """Keys and values of up to any number of rows; row i of a decode batch is slot i.

    Each slot's tokens begin at position 0, so nothing moves when another row comes, goes or grows. Before
    a forward pass say which kind it is: begin_prefill or begin_decode.
    """

    def __init__(self) -> None:
        # The base class's storage is not used; its type is what models ask for.
        super().__init__(layers=[])
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._slots = 0
        self._tokens = 0
        self._first = 0
        self._wanted_slots = 0
        self._wanted_tokens = 0
        self._rows: Tensor | None = None
        self._lengths: Tensor | None = None
        self._longest = 0

    @property
    def reserved(self) -> int:
        """Slots times tokens of the memory that is held."""
        return self._slots * self._tokens

    def begin_prefill(self, first_slot: int, rows: int, tokens: int) -> None:
        """The next pass fills slots from ``first_slot`` on with whole prompts of up to ``tokens``."""
        self._rows = None
        self._first = first_slot
        self._reserve(first_slot + rows, tokens)

    def begin_decode(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """The next pass adds one token to each of the first ``len(lengths)`` slots.

        Returns the attention mask (rows, 1, 1, longest + 1), true where a row has a token.
        """
        self._longest = max(lengths) + 1
        self._reserve(len(lengths), self._longest)
        self._rows = torch.arange(len(lengths), device=device)
        self._lengths = torch.tensor(lengths, device=device)
        places = torch.arange(self._longest, device=device)
        return (places[None, :] <= self._lengths[:, None])[:, None, None, :]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copies the first ``length`` tokens of slots to as many others."""
        for store in (*self._keys, *self._values):
            store[targets, :, :length] = store[sources, :, :length]

    def clear(self, slots: slice, length: int) -> None:
        """Zeroes slots, so that no number of one request, not even a NaN, can meet another's."""
        for store in (*self._keys, *self._values):
            store[slots, :, :length] = 0

    def drop(self) -> None:
        """Gives all memory back."""
        self._keys, self._values = [], []
        self._slots = self._tokens = self._wanted_slots = self._wanted_tokens = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values (rows, heads, tokens, width); returns those to attend to."""
        if layer_idx == len(self._keys):
            self._allocate(key_states, value_states)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._rows is None:
            end, tokens = self._first + key_states.shape[0], key_states.shape[2]
            keys[self._first : end, :, :tokens] = key_states
            values[self._first : end, :, :tokens] = value_states
            return key_states, value_states
        keys[self._rows, :, self._lengths] = key_states[:, :, 0]
        values[self._rows, :, self._lengths] = value_states[:, :, 0]
        rows = key_states.shape[0]
        return keys[:rows, :, : self._longest], values[:rows, :, : self._longest]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given with each pass."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """In a prefill every token is new; in decoding the mask is given."""
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """See get_mask_sizes."""
        return 0

    def _reserve(self, slots: int, tokens: int) -> None:
        self._wanted_slots = max(self._wanted_slots, slots)
        self._wanted_tokens = max(self._wanted_tokens, tokens)
        if self._keys and (slots > self._slots or tokens > self._tokens):
            wider = self._slots if slots <= self._slots else max(slots, 2 * self._slots)
            longer = self._tokens if tokens <= self._tokens else _rounded(max(tokens, self._tokens * 5 // 4))
            for stores in (self._keys, self._values):
                for index, old in enumerate(stores):
                    new = old.new_zeros(wider, old.shape[1], longer, old.shape[3])
                    new[: self._slots, :, : self._tokens] = old
                    stores[index] = new
            self._slots, self._tokens = wider, longer

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self._keys:
            self._slots, self._tokens = self._wanted_slots, _rounded(self._wanted_tokens)
        for stores, states in ((self._keys, key_states), (self._values, value_states)):
            stores.append(states.new_zeros(self._slots, states.shape[1], self._tokens, states.shape[3]))


def _rounded(tokens: int) -> int:
    return -(-tokens // _BLOCK) * _BLOCK
