"""Products of a single row, in Triton, in one pass over the weights: what comes before and after is taken along."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import launch, on_its_gpu, starts_early
from qwen2_audio.gpu.int4 import pair, scaled, words_of


@triton.jit
def finish(
    y, z, square, bias, out, n, known,
    NORM: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Outputs n of the sums y (gates) and z, for a row whose squares are `square` on average."""
    if NORM:
        factor = 1.0 / tl.sqrt(square)
        y *= factor
        z *= factor
    if BIAS:
        y += tl.load(bias + n, mask=known, other=0.0).to(tl.float32)
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * z
    if ADD:
        y += tl.load(out + n, mask=known, other=0.0).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=known)


@triton.jit
def _plain(
    x, norm, weight, bias, out, inputs, outputs, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    OUTPUTS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = n < outputs
    row = weight + n.to(tl.int64)[:, None] * inputs
    other = row + outputs.to(tl.int64) * inputs
    total = tl.zeros([OUTPUTS, TILE], tl.float32)
    total_other = tl.zeros([OUTPUTS, TILE], tl.float32)
    squares = tl.zeros([TILE], tl.float32)
    for start in range(0, inputs, TILE):
        k = start + tl.arange(0, TILE)
        inside = k < inputs
        given = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += given * given
            given *= tl.load(norm + k, mask=inside, other=0.0).to(tl.float32)
        both = known[:, None] & inside[None, :]
        w = tl.load(row + k[None, :], mask=both, other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * given[None, :]
        if GATED:
            w = tl.load(other + k[None, :], mask=both, other=0.0, eviction_policy="evict_first")
            total_other += w.to(tl.float32) * given[None, :]
    y = tl.sum(total, axis=1)
    z = tl.sum(total_other, axis=1)
    finish(y, z, tl.sum(squares, axis=0) / inputs + eps, bias, out, n, known, NORM, BIAS, GATED, ADD)


@triton.jit
def _in_4_bits(
    x, norm, words, scales, lows, bias, out, inputs, outputs, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    OUTPUTS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = n < outputs
    blocks = inputs // 128
    none, nothing = tl.zeros([OUTPUTS, TILE, 16], tl.float32), tl.zeros([TILE, 16], tl.float32)
    total, total_other, squares = none, none, nothing
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        k = block[:, None] * 128 + tl.arange(0, 16)[None, :]
        there = (block < blocks)[:, None]
        inside = known[:, None] & (block < blocks)[None, :]
        word = words_of(words, n, block, blocks, inside)
        lower, upper, lower_other, upper_other = none, none, none, none
        if GATED:
            word_other = words_of(words, n + outputs, block, blocks, inside)
        sum_first, sum_second = nothing, nothing
        for slot in tl.static_range(4):
            first = tl.load(x + k + slot * 16, mask=there, other=0.0).to(tl.float32)
            second = tl.load(x + k + slot * 16 + 64, mask=there, other=0.0).to(tl.float32)
            if NORM:
                squares += first * first + second * second
                first *= tl.load(norm + k + slot * 16, mask=there, other=0.0).to(tl.float32)
                second *= tl.load(norm + k + slot * 16 + 64, mask=there, other=0.0).to(tl.float32)
            sum_first += first
            sum_second += second
            low, high = pair(word, slot)
            lower += low * first[None, :, :]
            upper += high * second[None, :, :]
            if GATED:
                low, high = pair(word_other, slot)
                lower_other += low * first[None, :, :]
                upper_other += high * second[None, :, :]
        total += scaled(lower, upper, sum_first, sum_second, scales, lows, n, block, blocks, inside)
        if GATED:
            total_other += scaled(
                lower_other, upper_other, sum_first, sum_second, scales, lows, n + outputs, block, blocks, inside
            )
    y = tl.sum(tl.sum(total, axis=2), axis=1)
    z = tl.sum(tl.sum(total_other, axis=2), axis=1)
    square = tl.sum(tl.sum(squares, axis=1), axis=0) / inputs + eps
    finish(y, z, square, bias, out, n, known, NORM, BIAS, GATED, ADD)


@on_its_gpu
def product(
    x: Tensor,
    weight: Tensor | tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    gated: bool = False,
    add: bool = False,
) -> Tensor:
    """`out (+)= weight @ rms_norm(x) + bias`, or `silu(gates) * the others` of that.

    Args:
        x: [1, in], contiguous.
        weight: [out, in], contiguous; `gated`: [2 * out, in], the gates first. In 4 bits: words, scales and least values, as
            `gpu.int4` has them.
        out: [1, out], written.
        norm: the norm's weight [in]; None: x is taken as it is.
        add: to what `out` holds.
    """
    inputs, outputs = x.shape[1], out.shape[1]
    weights = (weight,) if isinstance(weight, Tensor) else weight
    kernel, tile_of = (_plain, _tile) if isinstance(weight, Tensor) else (_in_4_bits, _tile_in_4_bits)
    rows, tile, warps = tile_of(outputs, inputs, gated)
    early = starts_early()
    kernel[(triton.cdiv(outputs, rows),)](
        x, norm, *weights, bias, out, inputs, outputs, eps,
        NORM=norm is not None, BIAS=bias is not None, GATED=gated, ADD=add,
        OUTPUTS=rows, TILE=tile, EARLY=early, num_warps=warps, **launch(early),
    )  # fmt: skip
    return out


def _tile(outputs: int, inputs: int, gated: bool) -> tuple[int, int, int]:
    """Outputs and inputs that a program works on at once, and its warps; tried out on an H100."""
    if gated:
        return 2, 2048, 4
    return (2, 1024, 4) if inputs > 2 * outputs else (4, 512, 4)


def _tile_in_4_bits(outputs: int, inputs: int, gated: bool) -> tuple[int, int, int]:
    """As `_tile`, with blocks of 128 inputs."""
    if gated:
        return 2, 8, 1
    return (2, 16, 4) if outputs <= inputs else (16, 4, 1)
