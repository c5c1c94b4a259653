"""What comes after a product of a single row, taken along by it."""

from __future__ import annotations

import triton
import triton.language as tl


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
