"""LoRA (Hu et al. 2021): frozen linear layers with a trained low-rank correction beside them."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn

from qwen2_audio.errors import UsageError


class LoraLinear(nn.Module):
    """y = W x + b + scale * B (A x), with only A [rank, in] and B [out, rank] trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.lora_A)
        return self.base(x) + nn.functional.linear(low, self.lora_B) * self.scale


def add_lora(model: nn.Module, pattern: str, rank: int, scale: float) -> list[str]:
    """Wrap every linear layer whose whole name matches the regular expression `pattern`; returns their names.

    Raises:
        UsageError: no linear layer matches.
    """
    names = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and re.fullmatch(pattern, n)]
    if not names:
        raise UsageError(f"no linear layer matches the LoRA target {pattern!r}; names look like language_model.*")
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = getattr(parent, child)
        setattr(parent, child, LoraLinear(layer, rank, scale))
    return names


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter under its published name; LoRA matrices as `NAME.lora_A` and `NAME.lora_B`."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
