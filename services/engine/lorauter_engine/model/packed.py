"""Linear layers whose weights are laid out for the processor once, at the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

WORTH_PACKING = 2**18
"""Weights of the smallest layer that is packed: below, oneDNN's calls cost more than they save."""


class PackedLinear(nn.Module):
    """y = x W + b by oneDNN, which is some two times as fast as MKL's product on a processor of AMD's.

    Takes (..., in) and returns (..., out). The weight given is copied and not kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is (out, in), float32 or bfloat16 on a CPU."""
        super().__init__()
        self.weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight), requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def packed(module: nn.Linear | Conv1D) -> nn.Module:
    """Returns a layer that computes what ``module`` does: packed if that is faster here, else itself."""
    weight = module.weight.detach()
    is_served = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not is_served or not has_onednn or weight.numel() < WORTH_PACKING:
        return module
    return PackedLinear(weight.T.contiguous() if isinstance(module, Conv1D) else weight, module.bias)
