"""Linear layers, which are multiplied as one where they have the same input (q, k and v; gate and up) and somebody has prepared
that: see `qwen2_audio.kernels.packing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Stack(Protocol):
    """Layers with a common input as one."""

    sizes: list[int]

    def fits(self, layers: Sequence[nn.Module]) -> bool:
        """Whether this is what `layers` would compute."""

    def __call__(self, x: Tensor) -> Tensor:
        """All outputs, side by side."""


class Linear(nn.Linear):
    """`nn.Linear`, until it has a `packed` that fits and while gradients are off."""

    packed: Stack | None = None
    """Set on the first layer of a group that was packed or joined together."""

    def forward(self, x: Tensor) -> Tensor:
        return project([self], x)[0]


class Together(nn.Module):
    """A layer of another kind that can be multiplied with its neighbours in one go (see `project`)."""

    def together(self, layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
        """What all `layers`, of which this is the first, give for x [tokens, in_features]."""
        raise NotImplementedError


def project(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """Apply several linear layers to the same x [tokens, in_features]: one [tokens, out_features] each."""
    first = layers[0]
    if isinstance(first, Linear):
        packed = first.packed
        if packed is not None and not torch.is_grad_enabled() and packed.fits(layers):
            return [packed(x)] if len(layers) == 1 else packed(x).split(packed.sizes, dim=-1)
        if len(layers) == 1:
            return [nn.functional.linear(x, first.weight, first.bias)]
    elif isinstance(first, Together):
        return first.together(layers, x)
    return [layer(x) for layer in layers]


def groups(parent: nn.Module) -> list[dict[str, Linear]]:
    """The linear layers right below `parent` by their names; those with the same input stand together."""
    layers = {name: child for name, child in parent.named_children() if isinstance(child, Linear)}
    together = [names for names in _TOGETHER if all(name in layers for name in names)]
    alone = [(name,) for name in layers if not any(name in names for names in together)]
    return [{name: layers[name] for name in names} for names in (*together, *alone)]
