"""Linear layers that add each row's weighted adapters to the base model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorauter_engine.model.plan import BatchPlan, Part, expand


@dataclass(slots=True)
class BatchContext:
    """What the layers must know of the batch in hand; set before each forward pass.

    ``rows`` and ``positions`` (N,) name the vectors of which logits are wanted.
    """

    plan: BatchPlan | None = None
    rows: Tensor | None = None
    positions: Tensor | None = None


class AdaptedLinear(nn.Module):
    """y = base(x) + sum_i w_i s_i B_i (A_i x), with every row's own set. Base: nn.Linear or Conv1D."""

    def __init__(self, base: nn.Module, name: str, context: BatchContext) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.context = context

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks for its dtype or ties it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Takes (rows, tokens, in) and returns (rows, tokens, out)."""
        y: Tensor = self.base(x)
        plan = self.context.plan
        if plan is not None:
            for part in plan.parts.get(self.name, ()):
                _add(x, y, part)
        return y


class GatheringHead(nn.Module):
    """The output layer on wanted vectors only: (rows, tokens, hidden) becomes (N, vocabulary)."""

    def __init__(self, base: nn.Module, name: str, context: BatchContext) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.context = context

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks for its dtype or ties it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        context = self.context
        assert context.rows is not None
        assert context.positions is not None
        wanted = x[context.rows, context.positions]
        y: Tensor = self.base(wanted)
        if context.plan is not None:
            for matrices, coefficients in expand(context.plan, self.name, context.rows):
                low = (wanted @ matrices.a.T) * coefficients
                # An infinity of one row's adapter times another row's zero is no number.
                y = y + low.masked_fill_(coefficients == 0, 0.0) @ matrices.b_t
        return y


def adapt(model: nn.Module, head: nn.Module | None, context: BatchContext) -> dict[str, tuple[int, int]]:
    """Puts an AdaptedLinear around every linear layer; returns (in, out) by full module name.

    ``head`` is the output layer, which becomes a GatheringHead.
    """
    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in found:
        wrapper = GatheringHead if module is head else AdaptedLinear
        parent_name, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent_name), attribute, wrapper(module, name, context))
        first, second = module.weight.shape
        shapes[name] = (first, second) if isinstance(module, Conv1D) else (second, first)
    return shapes


def _add(x: Tensor, y: Tensor, part: Part) -> None:
    rows = slice(part.start, part.end)
    matrices = part.matrices
    low = torch.matmul(x[rows], matrices.a.T)
    low *= part.coefficients[:, None, :]
    out = y[rows]
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), matrices.b_t)
