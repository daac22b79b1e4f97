"""Linear layers that add each row's weighted adapters to the base model's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorauter_engine.model.packed import packed
from lorauter_engine.model.plan import BatchPlan, Part, Stack


@dataclass(slots=True)
class BatchContext:
    """What the layers must know of the batch in hand; set before each forward pass.

    ``rows`` and ``positions`` (N,) name the vectors of which logits are wanted; ``plan_of_wanted`` is for
    layers that see only those.
    """

    plan: BatchPlan | None = None
    plan_of_wanted: BatchPlan | None = None
    rows: Tensor | None = None
    positions: Tensor | None = None


class AdaptedLinear(nn.Module):
    """y = base(x) + sum_i w_i s_i B_i (A_i x), with every row's own set. Base: a linear layer of any kind."""

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
            if self.name in plan.stacks:
                _add_stack(x, y, plan.stacks[self.name])
        return y


class OnWanted(nn.Module):
    """A part that treats every vector alone, on the wanted ones only: nobody reads what becomes of others.

    Takes (rows, tokens, in). The output layer returns (N, out); a part within the model returns
    (rows, tokens, out), zero where nothing is wanted.
    """

    def __init__(self, base: nn.Module, context: BatchContext, is_last: bool) -> None:
        super().__init__()
        self.base = base
        self.context = context
        self.is_last = is_last

    @property
    def weight(self) -> Tensor:
        """The output layer's weight, for code that asks for its dtype or ties it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        context = self.context
        assert context.rows is not None
        assert context.positions is not None
        wanted = x[context.rows, context.positions]
        plan, context.plan = context.plan, context.plan_of_wanted
        y: Tensor = self.base(wanted[:, None])[:, 0]
        context.plan = plan
        if self.is_last:
            return y
        spread = y.new_zeros(*x.shape[:2], y.shape[-1])
        spread[context.rows, context.positions] = y
        return spread


def adapt(model: nn.Module, context: BatchContext) -> dict[str, tuple[int, int]]:
    """Puts an AdaptedLinear around every linear layer; returns (in, out) by full module name."""
    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in found:
        _replace(model, name, AdaptedLinear(packed(module), name, context))
        first, second = module.weight.shape
        shapes[name] = (first, second) if isinstance(module, Conv1D) else (second, first)
    return shapes


def gather(model: nn.Module, parts: Sequence[nn.Module], context: BatchContext) -> list[str]:
    """Has ``parts``, the last of which is the output layer, see wanted vectors only.

    Returns the names of the adapted layers within.
    """
    names = {module: name for name, module in model.named_modules()}
    adapted = []
    for part in parts:
        adapted += [inner.name for inner in part.modules() if isinstance(inner, AdaptedLinear)]
        _replace(model, names[part], OnWanted(part, context, part is parts[-1]))
    return adapted


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent_name, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent_name), attribute, module)


def _add(x: Tensor, y: Tensor, part: Part) -> None:
    rows = slice(part.start, part.end)
    matrices = part.matrices
    low = torch.matmul(x[rows], matrices.a.T)
    low *= part.coefficients[:, None, :]
    out = y[rows]
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), matrices.b_t)


def _add_stack(x: Tensor, y: Tensor, stack: Stack) -> None:
    low = torch.bmm(stack.a, x.transpose(1, 2))
    low *= stack.coefficients[:, :, None]
    y.baddbmm_(low.transpose(1, 2), stack.b_t)
