"""A linear layer that can keep a second copy of its weight in the layout that oneDNN multiplies fastest.

On x86 CPUs in float32 this halves the time of a decode step: the stock `linear` reads the weights of a single row at a
fraction of the memory's speed. With memory-mapped weights the first copy is never paged in, so it costs no memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, until `pack()` has been called and gradients are off."""

    _packed: Tensor | None = None

    def pack(self) -> None:
        """Prepare for inference on the CPU in float32; anywhere else this does nothing. To be called again when the
        weight has changed."""
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None or torch.is_grad_enabled():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Call `pack` on every layer that has it."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.pack()
