"""Weights of linear layers laid out for inference: on a CPU as oneDNN multiplies them fastest, on a GPU those of layers with a
common input together.

On x86 CPUs in float32 the first nearly halves the time of a decode step that is not compiled (`steps`): the stock product of a
single row reads the weights at a fraction of the memory's speed. What is best for one row is not for a prompt. Where the
weights are memory-mapped, and lie well, the first copy need not stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qwen2_audio.model.linear import Linear, groups

MOST_PACKED_BYTES = 4 << 30
"""Larger models stay as they are: where their weights are not memory-mapped, a second copy would cost too much memory."""
_CACHE_LINE = 64
_PROMPT_ROWS = 256
"""Rows of a product that is no step, roughly: for 32 to 1024 the layout is as good."""


class Stacked:
    """Layers with a common input as one; a snapshot."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self._sources = [(layer.weight, _state(layer.weight)) for layer in layers]
        biases: list[Tensor] = [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        self.bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)

    def fits(self, layers: Sequence[nn.Module]) -> bool:
        """Whether this is what `layers` would compute: the same weights, not changed since."""
        if len(layers) != len(self._sources):
            return False
        return all(
            isinstance(layer, Linear) and layer.weight is weight and _state(weight) == state
            for layer, (weight, state) in zip(layers, self._sources, strict=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """All outputs, side by side."""
        raise NotImplementedError


class Packed(Stacked):
    """On a CPU: the weights stacked and reordered for products of so many rows, a second copy; others are only slower."""

    def __init__(self, layers: Sequence[Linear], rows: int) -> None:
        super().__init__(layers)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")


class Joined(Stacked):
    """On a GPU: the weights one behind the other in memory, [all outputs, in]; those of the layers are parts of it."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        for layer, part in zip(layers, self.weight.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part
        super().__init__(layers)

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def _state(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight is written to in place (the version) or moved and converted (`.to()`: the address)."""
    return weight._version, weight.data_ptr()


def align_linears(model: nn.Module) -> None:
    """Copy float32 weights on a CPU that a file is mapped to at an odd place: a vector that lies across two lines of the
    processor's cache is read more slowly. Comes before `pack_linears`, and as it leaves large models alone."""
    for layer in _small(model):
        weight = layer.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.data_ptr() % _CACHE_LINE:
            layer.weight.data = layer.weight.data.clone()


def _small(model: nn.Module) -> list[Linear]:
    """The linear layers of a model that is small enough for copies."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    return layers if sum(layer.weight.nbytes for layer in layers) <= MOST_PACKED_BYTES else []


def pack_linears(model: nn.Module, *, singles: nn.Module | None = None) -> None:
    """Prepare all linear layers for inference on the CPU in float32; anywhere else this does nothing.

    Args:
        singles: the part of the model that multiplies a single row most of the time.
    """
    of_singles = set() if singles is None else set(singles.modules())
    if not torch.backends.mkldnn.is_available() or not _small(model):
        return
    for parent in model.modules():
        for group in groups(parent):
            layers = list(group.values())
            if layers[0].packed is not None and layers[0].packed.fits(layers):
                continue  # shared with another model
            if all(layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 for layer in layers):
                layers[0].packed = Packed(layers, 1 if parent in of_singles else _PROMPT_ROWS)


def join_linears(model: nn.Module) -> None:
    """Lay the weights of layers with a common input together, on a GPU; anywhere else this does nothing. Layers that another
    model has in common with this one stay as they are."""
    for parent in model.modules():
        for group in groups(parent):
            layers = list(group.values())
            alone = all(
                type(layer.weight) is nn.Parameter and layer.weight.untyped_storage().nbytes() == layer.weight.nbytes
                for layer in layers
            )
            if len(layers) > 1 and alone and layers[0].weight.device.type == "cuda":
                layers[0].packed = Joined(layers)
