"""LoRA (Hu et al. 2021): frozen linear layers with a trained low-rank correction beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qwen2_audio.errors import UsageError


class LoraLinear(nn.Module):
    """y = W x + b + scale * B (A x), with only A [rank, in] and B [out, rank] trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.active = True
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return linear(x.to(self.base.weight.dtype), self.base.weight, self.base.bias)
        base, B = self.base, self.lora_B * self.scale
        return _LoraProduct.apply(x, base.weight, base.bias, self.lora_A, B)  # type: ignore[no-untyped-call]


class _LoraProduct(torch.autograd.Function):
    """W x + b + B (A x) in the dtype of the frozen W, with the six products of both directions and nothing between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        x, A, B = x.to(weight.dtype), A.to(weight.dtype), B.to(weight.dtype)
        low = linear(x, A)
        ctx.save_for_backward(x, low, weight, A, B)
        return linear(x, weight, bias).addmm_(low, B.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, A, B = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        of_low = gradient @ B
        of_x = (gradient @ weight).addmm_(of_low, A) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, gradient.T @ low


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


def is_lora(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA matrix."""
    return name.endswith((".lora_A", ".lora_B"))


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before LoRA, for as long as the block runs."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter under its published name; LoRA matrices as `NAME.lora_A` and `NAME.lora_B`."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
