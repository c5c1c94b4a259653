"""Linear layers of a language model in 4 bits, for GPUs: a scale and a least value for each 64 weights of a row.

They are multiplied as they lie by `qwen2_audio.gpu.int4`, which is quicker than bfloat16 for as few rows as a step of
decoding has. The plain version, which widens the weights first, runs anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qwen2_audio.checkpoints.rounded import RoundedLinear
from qwen2_audio.errors import UsageError
from qwen2_audio.gpu.abilities import compiles
from qwen2_audio.model.linear import Linear, groups

_GROUP = 64
"""Weights with a scale in common."""
_WORDS = 16
"""Of 32 bits, for two such groups."""


Parts4: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""See `Int4Weight.parts`."""


class Int4Weight:
    """The weights of layers with a common input, one below the other.

    Attributes:
        parts: int32 [outputs, in / 8], each 16 words of which hold 128 neighbours, word j those at j, j + 16, j + 32, ... from
            its lowest bits up; scales and least values, float16 [outputs, in / 64].
        sizes: outputs of each layer.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        """Raises: UsageError: the inputs are no multiple of 128."""
        inputs = layers[0].in_features
        if inputs % (2 * _GROUP):
            raise UsageError(
                f"int4 wants layers whose inputs are a multiple of 128, not {inputs}; use another quantize"
            )
        self.sizes = [layer.out_features for layer in layers]
        rounded = [_rounded(layer.weight) for layer in layers]
        words, scales, lows = (torch.cat(parts) for parts in zip(*rounded, strict=True))
        self.parts = words, scales, lows
        biases: list[Tensor] = [
            layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers
        ]
        self.bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases).detach()

    def widened(self, dtype: torch.dtype) -> Tensor:
        """[outputs, in], in plain torch."""
        words, scales, lows = self.parts
        shifts = 4 * torch.arange(8, device=words.device)[:, None]
        steps = (words.unflatten(1, (-1, 1, _WORDS)) >> shifts & 15).flatten(1).unflatten(1, (-1, _GROUP))
        return (steps * scales.float()[..., None] + lows.float()[..., None]).flatten(1).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if not x.is_cuda or not compiles(x.device):
            return linear(x, self.widened(x.dtype), self.bias)
        from qwen2_audio.gpu import int4 as kernels

        flat = x.flatten(0, -2).contiguous()
        if len(flat) > kernels.MOST_ROWS:
            return linear(x, kernels.widened(self.parts, x.dtype), self.bias)
        return kernels.product_of_many(flat, self.parts, self.bias).unflatten(0, x.shape[:-1])


class Int4Linear(RoundedLinear):
    """A linear layer in 4 bits."""

    weight: Int4Weight | None = None


@torch.no_grad()
def put_into_int4(language: nn.Module) -> None:
    """Replace every `Linear` of a language model, and forget its weight."""
    for parent in list(language.modules()):
        for group in groups(parent):
            first, *others = (Int4Linear() for _ in group)
            first.weight = Int4Weight(list(group.values()))
            for name, layer in zip(group, (first, *others), strict=True):
                setattr(parent, name, layer)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Int4Weight.parts`: the nearest of 16 values, evenly from the least to the greatest of each 64."""
    packed, scales, lows = [], [], []
    for rows in weight.detach().split(8192):  # little more than the result in memory
        of = rows.float().unflatten(1, (-1, _GROUP))
        low = of.amin(-1).half()
        scale = ((of.amax(-1) - low.float()) / 15).clamp_min(1e-7).half()
        steps = ((of - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15).to(torch.int32)
        slots = (
            steps.flatten(1).unflatten(1, (-1, 8, _WORDS))
            << 4 * torch.arange(8, device=of.device, dtype=torch.int32)[:, None]
        )
        packed.append(slots.sum(2, dtype=torch.int32).flatten(1))  # no two have a bit in common
        scales.append(scale)
        lows.append(low)
    return torch.cat(packed), torch.cat(scales), torch.cat(lows)
