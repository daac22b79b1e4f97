"""Answers queries with weighted sets of adapters: composed exactly, or merged as PEFT's `linear` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.lab_measured import Measured
from lorauter_suite.demo.check import Loaded
from lorauter_suite.demo.data import Example
from lorauter_suite.demo.score import composed_right
from lorauter_suite.demo.stack import LoraStack, Site

Rows = NDArray[np.intp]
Floats = NDArray[np.float64]


class MergedStack(LoraStack):
    """The same adapters, a row's set merged by parameters: A = Σ √(w s) A, B = Σ √(w s) B, then B A x.

    PEFT's add_weighted_adapter, combination type `linear`. It takes equal ranks only; those of a stack are,
    padded with zeros, which changes no adapter. The product has cross terms between adapters.
    """

    @contextmanager
    def mixed(self, model: nn.Module, chosen: Tensor, weights: Tensor) -> Iterator[None]:
        """Within: row i gets B A x of its merged set; ``chosen`` and ``weights`` are (rows, k)."""
        factors = (weights * self.scales[chosen]).sqrt()[:, :, None, None]

        def delta(site: Site, inputs: Tensor) -> Tensor:
            down = (site.down[chosen] * factors).sum(1)
            up = (site.up[chosen] * factors).sum(1)
            return inputs @ down.transpose(1, 2) @ up.transpose(1, 2)

        with self._attached(model, delta):
            yield


class Composer:
    """Answers the T x q queries of a seed with sets, each pair of a query and a set once.

    A set of one arm was measured before, and merging changes nothing of it.
    """

    def __init__(
        self, loaded: Loaded, stack: LoraStack, measured: Measured, queries: Sequence[Sequence[Example]]
    ) -> None:
        self._loaded, self._measured = loaded, measured
        self._stacks = {False: stack, True: MergedStack(stack.specs, stack.sites)}
        self._queries = [example for rows in queries for example in rows]
        self._known: dict[tuple[bool, bytes], bool] = {}

    def right(self, chosen: Rows, weights: Floats, merged: bool = False) -> Floats:
        """Returns (T, q), 1 where the greedy answer is right; ``chosen`` and ``weights`` are (T, q, k).

        The base's weight adds nothing.
        """
        flat, heavy = chosen.reshape(-1, chosen.shape[-1]), weights.reshape(-1, chosen.shape[-1])
        known = self._measured.right.swapaxes(1, 2).reshape(len(flat), -1)
        found = known[np.arange(len(flat)), flat[:, 0]].copy()
        rows = np.flatnonzero((heavy > 0).sum(axis=1) > 1)
        keys = [
            (merged, row.to_bytes(4) + flat[row].tobytes() + heavy[row].tobytes()) for row in rows.tolist()
        ]
        new = [place for place, key in enumerate(keys) if key not in self._known]
        if new:
            answered = self._composed(rows[new], flat, heavy, merged)
            self._known |= {keys[place]: bool(right) for place, right in zip(new, answered, strict=True)}
        found[rows] = [self._known[key] for key in keys]
        return found.reshape(chosen.shape[:2])

    def _composed(self, rows: Rows, chosen: Rows, weights: Floats, merged: bool) -> Sequence[bool]:
        is_adapter = chosen[rows] < self._measured.base
        right = composed_right(
            self._loaded.model,
            self._stacks[merged],
            self._loaded.codec,
            [self._queries[row] for row in rows.tolist()],
            torch.from_numpy(np.where(is_adapter, chosen[rows], 0)),
            torch.from_numpy(np.where(is_adapter, weights[rows], 0.0)).float(),
        )
        answers: list[bool] = right.tolist()
        return answers
