"""Products with weights in 4 bits, in Triton, without widening them in memory. The plain version is `Int4Weight.widened`.

Weights lie as `qwen2_audio.checkpoints.int4` writes them: 16 words of 32 bits hold 128 neighbours of a row, word j of them
those at j, j + 16, j + 32, ..., the first four in its lower half; each 64 neighbours have a scale and a least value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import on_its_gpu


@triton.jit
def words_of(words, n, block, blocks, inside):
    """Words [outputs, blocks, 16]."""
    at = n.to(tl.int64)[:, None] * blocks + block[None, :]
    place = words + at[:, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    return tl.load(place, mask=inside[:, :, None], other=0, eviction_policy="evict_first")


@triton.jit
def _scales(scales, lows, n, block, blocks, inside, HALF: tl.constexpr):
    """Scale and least value [outputs, blocks, 1] of what the lower or upper halves of words hold, as `pair` gives it."""
    at = (n.to(tl.int64)[:, None] * blocks + block[None, :]) * 2 + HALF
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    low = tl.load(lows + at, mask=inside, other=0.0).to(tl.float32) - 128.0 * scale
    return scale[:, :, None], low[:, :, None]


@triton.jit
def pair(words, SLOT: tl.constexpr):
    """A number of the lower halves of words, and one of the upper, each plus 128: bfloat16 has these as they are."""
    both = ((words >> (4 * SLOT)) & 0x000F000F) | 0x43004300
    return (both << 16).to(tl.float32, bitcast=True), (both & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _product_of_many(
    x, words, scales, lows, bias, out, rows, inputs, outputs,
    BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = n < outputs
    r, j = tl.arange(0, ROWS), tl.arange(0, 16)
    blocks = inputs // 128
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    start = x + r[:, None] * inputs + j[None, :]
    there = (r < rows)[:, None]
    for block in range(0, blocks):
        at = n.to(tl.int64) * blocks + block
        word = tl.load(words + at[None, :] * 16 + j[:, None], mask=known[None, :], other=0)
        low_scale = tl.load(scales + at * 2, mask=known, other=0.0).to(tl.float32)
        low_least = tl.load(lows + at * 2, mask=known, other=0.0).to(tl.float32) - 128.0 * low_scale
        high_scale = tl.load(scales + at * 2 + 1, mask=known, other=0.0).to(tl.float32)
        high_least = tl.load(lows + at * 2 + 1, mask=known, other=0.0).to(tl.float32) - 128.0 * high_scale
        for slot in tl.static_range(4):
            first = tl.load(start + block * 128 + slot * 16, mask=there, other=0.0)
            second = tl.load(start + block * 128 + slot * 16 + 64, mask=there, other=0.0)
            low, high = pair(word, slot)
            low = (low * low_scale[None, :] + low_least[None, :]).to(first.dtype)
            high = (high * high_scale[None, :] + high_least[None, :]).to(first.dtype)
            total += tl.dot(first, low, input_precision="ieee")
            total += tl.dot(second, high, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + n, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + r[:, None] * outputs + n[None, :], total.to(out.dtype.element_ty), mask=there & known[None, :])


MOST_ROWS = 64


@on_its_gpu
def product_of_many(x: Tensor, weight: tuple[Tensor, Tensor, Tensor], bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, of x [up to 64 rows, in], contiguous; for `weight` see `products.product`."""
    outputs = len(weight[0])
    out = x.new_empty(len(x), outputs)
    _product_of_many[(triton.cdiv(outputs, 32),)](
        x, *weight, bias, out, len(x), x.shape[1], outputs,
        BIAS=bias is not None, ROWS=max(16, triton.next_power_of_2(len(x))), OUTPUTS=32, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _widened(words, scales, lows, out, blocks, BLOCKS: tl.constexpr):
    n = tl.program_id(0) + tl.zeros([1], tl.int32)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (n >= 0)[:, None] & (block < blocks)[None, :]
    word = words_of(words, n, block, blocks, inside)
    low_scale, low_least = _scales(scales, lows, n, block, blocks, inside, 0)
    high_scale, high_least = _scales(scales, lows, n, block, blocks, inside, 1)
    at = (n.to(tl.int64)[:, None] * blocks + block[None, :])[:, :, None] * 128 + tl.arange(0, 16)[None, None, :]
    for slot in tl.static_range(4):
        low, high = pair(word, slot)
        place = out + at + slot * 16
        tl.store(place, (low * low_scale + low_least).to(out.dtype.element_ty), mask=inside[:, :, None])
        tl.store(place + 64, (high * high_scale + high_least).to(out.dtype.element_ty), mask=inside[:, :, None])


@on_its_gpu
def widened(weight: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """The weights as they are multiplied, [outputs, in]."""
    outputs, size = weight[0].shape
    out = torch.empty(outputs, 8 * size, dtype=dtype, device=weight[0].device)
    _widened[(outputs, triton.cdiv(size // 16, 16))](*weight, out, size // 16, BLOCKS=16, num_warps=4)
    return out
