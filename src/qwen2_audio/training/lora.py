"""LoRA (Hu et al. 2021): frozen linear layers with a trained low-rank correction beside them; and DoRA (Liu et al. 2024), which
learns the length of each row of the corrected weight apart from its direction. Both as `peft` has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MATRICES = ("lora_A", "lora_B", "lora_magnitude")


class LoraLinear(nn.Module):
    """y = W x + b + scale * B (A x), with only A [rank, in] and B [out, rank] trained.

    As DoRA: y = m * (W x + scale * B (A x)) / |W + scale * B A| + b, with the row lengths m [out] trained too.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, *, dora: bool = False) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.active = True
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_magnitude = nn.Parameter(base.weight.detach().float().norm(dim=1)) if dora else None

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        if not self.active:
            return base(x) if quantized(base) else linear(x.to(base.weight.dtype), base.weight, base.bias)
        if quantized(base):
            return base(x) + self.scale * linear(linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        if self.lora_magnitude is None:
            B = self.lora_B * self.scale
            return _LoraProduct.apply(x, base.weight, base.bias, self.lora_A, B)  # type: ignore[no-untyped-call]
        length = (base.weight + self.scale * self.lora_B @ self.lora_A).detach().norm(dim=1)
        low = linear(linear(x, self.lora_A), self.lora_B)
        straight = linear(x.to(base.weight.dtype), base.weight) + self.scale * low
        out = straight * (self.lora_magnitude / length)
        return out if base.bias is None else out + base.bias


def quantized(layer: nn.Linear) -> bool:
    """Whether the layer's weight is not a matrix of numbers but some packed form that only the layer can multiply."""
    return not layer.weight.is_floating_point()


class _LoraProduct(torch.autograd.Function):
    """W x + b + B (A x), the six products of both directions and nothing between them, in the dtype of autocast (else of W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        x, A, B = x.to(dtype), A.to(dtype), B.to(dtype)
        low = linear(x, A)
        ctx.save_for_backward(x, low, weight, A, B)
        return linear(x, weight.to(dtype), None if bias is None else bias.to(dtype)).addmm_(low, B.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, A, B = ctx.saved_tensors
        gradient, weight = gradients[0].to(x.dtype), weight.to(x.dtype)
        of_low = gradient @ B
        of_x = (gradient @ weight).addmm_(of_low, A) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, gradient.T @ low


def add_lora(model: nn.Module, names: list[str], rank: int, scale: float, *, dora: bool = False) -> None:
    """Wrap the linear layers of these names."""
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LoraLinear(getattr(parent, child), rank, scale, dora=dora))


def is_lora(name: str) -> bool:
    """Whether a parameter's name is that of a part of a correction."""
    return name.rpartition(".")[2] in MATRICES


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """All corrected layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before LoRA, for as long as the block runs."""
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True
