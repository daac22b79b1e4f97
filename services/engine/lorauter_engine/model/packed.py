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
    if weight.device.type != "cpu" or weight.numel() < WORTH_PACKING or not _is_served(weight.dtype):
        return module
    return PackedLinear(weight.T.contiguous() if isinstance(module, Conv1D) else weight, module.bias)


def _is_served(dtype: torch.dtype) -> bool:
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn:
        return False
    # Older processors have no bfloat16, and oneDNN then refuses it.
    return dtype is torch.float32 or (
        dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
