"""Linear layers whose weights lie in int8, multiplied by torch's own integer kernels on the CPU.

Weights are rounded to 8 bits with a scale for each output. What comes in is rounded on the way ("dynamic quantisation"), each
token by itself: its greatest value decides the step, so that a loud token costs its neighbours in a batch nothing. A few
channels of transformers are many times louder than the rest, and would make the step coarse for all. So both factors of the
product are turned by the same Hadamard matrix first, block by block, which spreads what is loud over its block and leaves the
product as it was (Ashkboos et al. 2024, "QuaRot").
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwen2_audio.checkpoints.rounded import RoundedLinear
from qwen2_audio.model.linear import Linear, groups
from qwen2_audio.runtime import give_memory_back

_ROWS_AT_ONCE = 32
_ROWS_PACKED = 12288  # packing more than so many together takes longer than in parts
_LARGEST_BLOCK = 128  # larger ones take longer and gain little; smaller ones spread less (docs/performance.md)
_MOST_KEPT = 2 << 30  # weights, a byte each: of larger models a second copy would cost too much memory
_READ_PLAIN = "language_model"  # whose rounded weights compiled decode steps read as they are
_LEAST = 1e-30  # scale of a row of zeros
_EXACT = "multi_modal_projector"  # small, all that was heard passes through it, and it carries the model's dtype


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """A weight [out, in], spread, as int8 `rows` [out, in] times float32 `scales` [out]."""

    rows: Tensor
    scales: Tensor


@torch.no_grad()
def to_int8(weight: Tensor) -> Int8Rows:
    """Spread and round a weight [out, in] of any floating dtype; the greatest value of each output becomes 127 steps. Works
    through it in parts, so that nothing the size of the weight is allocated but the result."""
    found = Int8Rows(torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0]))
    whole = zip(*(tensor.split(_ROWS_AT_ONCE) for tensor in (weight, found.rows, found.scales)), strict=True)
    matrix = spreader(weight.shape[1])
    for part, rows, scales in whole:
        wide = spread(part.float(), matrix)
        scales.copy_(wide.abs().amax(1).div_(127).clamp_min_(_LEAST))
        rows.copy_((wide / scales[:, None]).round_())
    return found


def spreader(features: int) -> Tensor:
    """A Hadamard matrix [block, block], its own inverse, whose size divides `features`."""
    block = math.gcd(features, _LARGEST_BLOCK)
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * block**-0.5


def spread(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply every block of x [rows, features] by `matrix`."""
    return torch.mm(x.reshape(-1, len(matrix)), matrix).view(x.shape)


def _stacked(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), axis)


class Int8Weight:
    """The weights of layers with a common input, stacked and laid out as the kernel reads them.

    Attributes:
        parts, biases: what it was made of, where that is kept; else ().
        block: size of the blocks that are spread.
    """

    def __init__(self, parts: Sequence[Int8Rows], biases: Sequence[Tensor | None], *, keep: bool = False) -> None:
        rows, scales = _stacked([part.rows for part in parts]), _stacked([part.scales for part in parts])
        self.sizes = [len(part.scales) for part in parts]
        self._matrix = spreader(rows.shape[1])
        self.block = len(self._matrix)
        stacked = [
            rows.new_zeros(size, dtype=torch.float32) if bias is None else bias.detach().float()
            for size, bias in zip(self.sizes, biases, strict=True)
        ]
        self.parts, self.biases = (tuple(parts), tuple(stacked)) if keep else ((), ())
        self._bias = None if all(bias is None for bias in biases) else torch.cat(stacked)
        parts_of = -(-len(scales) // _ROWS_PACKED)
        self._packed = [_packed(r, s) for r, s in zip(rows.chunk(parts_of), scales.chunk(parts_of), strict=True)]
        # without VNNI instructions, sums of two 8-bit products overflow: 7 bits for what comes in
        self._seven_bits = not torch.cpu.get_capabilities().get("avx512_vnni", False)

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] to [tokens, out, stacked], float32."""
        x = spread(x, self._matrix)
        if len(x) == 1:
            y = self._multiply(x)
        else:  # the kernel has one step for all tokens: bring them to one height first
            height = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_min_(_LEAST)
            y = self._multiply(x / height).mul_(height)
        return y if self._bias is None else y.add_(self._bias)

    def _multiply(self, x: Tensor) -> Tensor:
        return _stacked([torch.ops.quantized.linear_dynamic(x, part, self._seven_bits) for part in self._packed], 1)


def _packed(rows: Tensor, scales: Tensor) -> torch.ScriptObject:
    zeros = torch.zeros(len(scales), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(rows, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, None)


class Int8Linear(RoundedLinear):
    """A linear layer in 8 bits."""

    weight: Int8Weight | None = None


class FileEmbedding(nn.Embedding):
    """An embedding that stays as it lies in the file, mapped and mostly unread; what is looked up comes out in float32."""

    @classmethod
    def of(cls, weight: Tensor) -> FileEmbedding:
        rows, features = weight.shape
        return cls(rows, features, _weight=weight, _freeze=True)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


def put_into_int8(model: nn.Module, ready: dict[str, Int8Rows] | None = None) -> None:
    """Replace every `Linear` of audio encoder and language model, and forget its weight. In small models the language model's
    rounded weights are also kept as they are, for kernels that read them so.

    Args:
        ready: weights that were rounded before, by their names in `model`, emptied on the way; all others are rounded now.
    """
    known = {} if ready is None else ready
    keep = sum(module.weight.numel() for module in model.modules() if isinstance(module, Linear)) < _MOST_KEPT

    def pack(path: str, parent: nn.Module, group: dict[str, Linear]) -> None:
        parts = []
        for name, layer in group.items():
            rounded = known.pop(f"{path}.{name}.weight".lstrip("."), None)
            parts.append(to_int8(layer.weight) if rounded is None else rounded)
        first, *others = (Int8Linear() for _ in group)
        kept = keep and path.startswith(_READ_PLAIN)
        first.weight = Int8Weight(parts, [layer.bias for layer in group.values()], keep=kept)
        for name, small in zip(group, (first, *others), strict=True):
            setattr(parent, name, small)

    places = [(path, parent) for path, parent in model.named_modules() if path != _EXACT]
    tasks = [(path, parent, group) for path, parent in places for group in groups(parent)]
    with warnings.catch_warnings(), workers() as pool:
        warnings.simplefilter("ignore", UserWarning)  # of torch, that tensors made for these kernels will go one day
        list(pool.map(lambda task: pack(*task), tasks))
    del tasks, places
    give_memory_back()


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each using one: packing knows no more, and rounding would wait for all at every step."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def is_int8(model: nn.Module) -> bool:
    """Whether there are int8 layers in `model`."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def int8_weights(model: nn.Module) -> list[str]:
    """Names of the weights that `put_into_int8` replaces."""
    linears = (name for name, module in model.named_modules() if isinstance(module, Linear))
    return [f"{name}.weight" for name in linears if not name.startswith(_EXACT)]
