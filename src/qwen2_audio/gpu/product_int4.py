"""The product of a single row with weights in 4 bits, in Triton: `gpu.int4` says how they lie.

A multiplication with a weight must take few instructions, since there are so many: four bits are cut out where they stand and
the exponent of 128 is put before them, which makes a float32 of them. Some then stand for a 16th of what they should; so what
they are multiplied by is made 16 times as great beforehand, once (`_ready`), and what 128 is too much is taken off the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import launch, starts_early
from qwen2_audio.gpu.product_end import finish

_TILE = 8
"""Blocks of 128 inputs that a program works on at once."""


@triton.jit
def _ready(
    x, norm, out, sums, inputs, padded, eps,
    NORM: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x, normed, 16 times as great where the slot is odd, [padded blocks, 128]; of each block, for both halves of its words,
    four times what 128 makes too much and four times the plain sum; behind all 128."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    block, slot, j = tl.arange(0, SIZE), tl.arange(0, 8), tl.arange(0, 16)
    k = block[:, None, None] * 128 + slot[None, :, None] * 16 + j[None, None, :]
    value = tl.load(x + k, mask=k < inputs, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(tl.sum(tl.sum(value * value, axis=2), axis=1), axis=0) / inputs + eps
        value *= tl.load(norm + k, mask=k < inputs, other=0.0).to(tl.float32) / tl.sqrt(square)
    great = value * tl.where(slot % 2 == 0, 1.0, 16.0)[None, :, None]
    tl.store(out + k, great, mask=(block < padded)[:, None, None])
    place = sums + block[:, None, None] * 16 + tl.arange(0, 2)[None, :, None] * 8 + tl.arange(0, 4)[None, None, :]
    there = (block < padded)[:, None, None]
    many = tl.sum(tl.reshape(great, [SIZE, 2, 4, 4, 4]), axis=4)
    tl.store(place, 128.0 * tl.sum(many, axis=2), mask=there)
    plain = tl.sum(tl.reshape(value, [SIZE, 2, 4, 4, 4]), axis=4)
    tl.store(place + 4, tl.sum(plain, axis=2), mask=there)
    tl.store(sums + padded * 16, 128.0)


@triton.jit
def _number(words, exponent, SLOT: tl.constexpr):
    """The four bits of a slot of words, plus 128, or, of an odd slot, their 16th, plus 128."""
    if SLOT == 0:
        moved = words << 16
    elif SLOT <= 2:
        moved = words << 8
    elif SLOT <= 4:
        moved = words
    elif SLOT <= 6:
        moved = words >> 8
    else:
        moved = words >> 16
    bits = (moved & (0x000F0000 if SLOT % 2 == 0 else 0x0000F000)) | exponent
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _line(exponent, given, of_block, words, scales, lows, n, end, block, blocks, TILE: tl.constexpr):
    """Parts of the sum for output n, [blocks, 4]. What a thread adds up it has loaded itself: all loads are laid out alike."""
    inside = (tl.where(n < end, block, blocks) < blocks)[:, None]
    at = n.to(tl.int64) * blocks + block[:, None]
    word = tl.load(words + at * 16 + tl.arange(0, 16)[None, :], mask=inside, other=0, eviction_policy="evict_first")
    place = at * 2 + tl.zeros([TILE, 4], tl.int32)
    total = tl.zeros([TILE, 4], tl.float32)
    for half in tl.static_range(2):
        found = tl.zeros([TILE, 16], tl.float32)
        for slot in tl.static_range(4 * half, 4 * half + 4):
            found += _number(word, exponent, slot) * given[slot]
        scale = tl.load(scales + place + half, mask=inside, other=0.0).to(tl.float32)
        low = tl.load(lows + place + half, mask=inside, other=0.0).to(tl.float32)
        four = tl.sum(tl.reshape(found, [TILE, 4, 4]), axis=2)
        total += scale * (four - of_block[2 * half]) + low * of_block[2 * half + 1]
    return total


@triton.jit
def _in_4_bits(
    x, sums, words, scales, lows, bias, out, inputs, outputs, padded,
    BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Four lines of weights: of four outputs, or of two and their gates."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * (2 if GATED else 4)
    third, end = n + 2, outputs
    if GATED:
        third, end = n + outputs, 2 * outputs
    blocks = inputs // 128
    # loaded, because a constant would be moved into place for each number
    exponent = tl.load(sums + padded * 16).to(tl.int32, bitcast=True)
    a = tl.zeros([TILE, 4], tl.float32)
    b, c, d = a, a, a
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        p = x + block[:, None] * 128 + tl.arange(0, 16)[None, :]
        q = sums + block[:, None] * 16 + tl.arange(0, 4)[None, :]
        given = (
            tl.load(p), tl.load(p + 16), tl.load(p + 32), tl.load(p + 48),
            tl.load(p + 64), tl.load(p + 80), tl.load(p + 96), tl.load(p + 112),
        )  # fmt: skip
        of_block = (tl.load(q), tl.load(q + 4), tl.load(q + 8), tl.load(q + 12))
        a += _line(exponent, given, of_block, words, scales, lows, n, outputs, block, blocks, TILE)
        b += _line(exponent, given, of_block, words, scales, lows, n + 1, outputs, block, blocks, TILE)
        c += _line(exponent, given, of_block, words, scales, lows, third, end, block, blocks, TILE)
        d += _line(exponent, given, of_block, words, scales, lows, third + 1, end, block, blocks, TILE)
    if GATED:
        _end(a, c, bias, out, n, outputs, BIAS, GATED, ADD)
        _end(b, d, bias, out, n + 1, outputs, BIAS, GATED, ADD)
    else:
        _end(a, a, bias, out, n, outputs, BIAS, GATED, ADD)
        _end(b, b, bias, out, n + 1, outputs, BIAS, GATED, ADD)
        _end(c, c, bias, out, n + 2, outputs, BIAS, GATED, ADD)
        _end(d, d, bias, out, n + 3, outputs, BIAS, GATED, ADD)


@triton.jit
def _end(y, z, bias, out, n, outputs, BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr):
    y, z = tl.sum(tl.sum(y, axis=1), axis=0), tl.sum(tl.sum(z, axis=1), axis=0)
    finish(y, z, 0.0, bias, out, n, n < outputs, False, BIAS, GATED, ADD)


def product_in_4_bits(
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    *,
    gated: bool,
    add: bool,
) -> Tensor:
    """See `gpu.products.product`."""
    inputs, outputs = x.shape[1], out.shape[1]
    padded, rows = triton.cdiv(inputs // 128, _TILE) * _TILE, 2 if gated else 4
    ready = x.new_empty(padded * 128, dtype=torch.float32)
    sums = x.new_empty(padded * 16 + 1, dtype=torch.float32)
    early = starts_early()
    _ready[(1,)](
        x, norm, ready, sums, inputs, padded, eps,
        NORM=norm is not None, SIZE=triton.next_power_of_2(padded), EARLY=early, num_warps=8, **launch(early),
    )  # fmt: skip
    _in_4_bits[(triton.cdiv(outputs, rows),)](
        ready, sums, *weight, bias, out, inputs, outputs, padded,
        BIAS=bias is not None, GATED=gated, ADD=add,
        TILE=_TILE, EARLY=early, num_warps=1, **launch(early),
    )  # fmt: skip
    return out
