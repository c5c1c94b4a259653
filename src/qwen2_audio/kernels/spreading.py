"""Spreading what comes in before products with int8 weights, compiled by Numba; plainly: `checkpoints.quantize.spread`.

A Hadamard matrix of 2^n rows is n rounds of sums and differences: of neighbours, of those two apart, four apart, and so on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[np.float32]
_OPTIONS: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"},
}  # fmt: skip
_LANES = 16


@intrinsic
def _first_rounds(_: Any, x: Any, start: Any, factor: Any) -> Any:
    """The first four rounds of 16 neighbours, in place, times a factor: as one vector, which Numba would not make of it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, lane = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
        vector = builder.load(place, align=4)
        for apart in (1, 2, 4, 8):
            partners = ir.Constant(ir.VectorType(lane, _LANES), [i ^ apart for i in range(_LANES)])
            signs = ir.Constant(kind, [-1.0 if i & apart else 1.0 for i in range(_LANES)])
            swapped = builder.shuffle_vector(vector, vector, partners)
            vector = builder.fadd(builder.fmul(vector, signs, flags=["contract"]), swapped, flags=["contract"])
        everywhere = ir.Constant(ir.VectorType(lane, _LANES), None)
        factors = builder.insert_element(kind(ir.Undefined), args[2], lane(0))
        factors = builder.shuffle_vector(factors, factors, everywhere)
        builder.store(builder.fmul(vector, factors), place, align=4)
        return context.get_dummy_value()

    return types.void(x, start, types.float32), generate


@njit(**_OPTIONS)
def spread(x: Array, block: int) -> None:
    """Multiply every block of x [size] by the Hadamard matrix of that size, in place; 1 leaves x as it is."""
    factor, apart = np.float32(1 / math.sqrt(block)), 1
    if block >= _LANES:
        for start in range(0, len(x), _LANES):
            _first_rounds(x, start, factor)
        apart = _LANES
    elif block > 1:
        for i in range(len(x)):
            x[i] *= factor
    while apart < block:
        for start in range(0, len(x), 2 * apart):
            for i in range(start, start + apart):
                a, b = x[i], x[i + apart]
                x[i], x[i + apart] = a + b, a - b
        apart *= 2
