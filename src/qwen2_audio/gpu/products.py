"""Products of a single row, in Triton, in one pass over the weights: what comes before and after is taken along."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import launch, on_its_gpu, starts_early
from qwen2_audio.gpu.product_end import finish
from qwen2_audio.gpu.product_int4 import product_in_4_bits


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
    if not isinstance(weight, Tensor):
        return product_in_4_bits(x, weight, out, norm, eps, bias, gated=gated, add=add)
    inputs, outputs = x.shape[1], out.shape[1]
    rows, tile, warps = _tile(outputs, inputs, gated)
    early = starts_early()
    _plain[(triton.cdiv(outputs, rows),)](
        x, norm, weight, bias, out, inputs, outputs, eps,
        NORM=norm is not None, BIAS=bias is not None, GATED=gated, ADD=add,
        OUTPUTS=rows, TILE=tile, EARLY=early, num_warps=warps, **launch(early),
    )  # fmt: skip
    return out


def _tile(outputs: int, inputs: int, gated: bool) -> tuple[int, int, int]:
    """Outputs and inputs that a program works on at once, and its warps; tried out on an H100."""
    if gated:
        return 2, 2048, 4
    return (2, 1024, 4) if inputs > 2 * outputs else (4, 512, 4)
