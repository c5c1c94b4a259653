"""What stands where a linear layer stood whose weights were rounded together with its neighbours'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from qwen2_audio.model.linear import Together


class RoundedWeight(Protocol):
    """Rounded weights of layers with a common input, stacked.

    Attributes:
        sizes: outputs of each layer.
    """

    sizes: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, all outputs] for x [tokens, in]."""


class RoundedLinear(Together):
    """Holds no parameters: it can neither be trained nor saved."""

    weight: RoundedWeight | None = None
    """Set on the first layer of a group; the others are multiplied with it."""

    def together(self, layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
        """What all `layers` of the group give for x [tokens, in]; this is their first."""
        if self.weight is None or len(self.weight.sizes) != len(layers):
            raise RuntimeError("rounded layers that were packed together must be multiplied together")
        y = self.weight(x)
        return [y] if len(layers) == 1 else y.split(self.weight.sizes, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.together([self], x)[0]
