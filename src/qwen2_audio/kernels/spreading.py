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

from qwen2_audio.kernels.vectors import FLOAT, OPTIONS, arrays, everywhere, lanes, read, write

Array = NDArray[np.float32]
_LANES = 16


@intrinsic
def _first_rounds(_: Any, x: Any, start: Any, factor: Any) -> Any:
    """The first four rounds of 16 neighbours, in place, times a factor: as one vector, which Numba would not make of it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (of_x,) = ir.VectorType(FLOAT, _LANES), arrays(context, builder, signature, args, (0,))
        vector = read(builder, kind, of_x.data, args[1])
        for apart in (1, 2, 4, 8):
            signs = ir.Constant(kind, [-1.0 if i & apart else 1.0 for i in range(_LANES)])
            swapped = builder.shuffle_vector(vector, vector, lanes(i ^ apart for i in range(_LANES)))
            vector = builder.fadd(builder.fmul(vector, signs, flags=["contract"]), swapped, flags=["contract"])
        write(builder, builder.fmul(vector, everywhere(builder, args[2], _LANES)), of_x.data, args[1])
        return context.get_dummy_value()

    return types.void(x, start, types.float32), generate


@njit(**OPTIONS, fastmath={"contract", "nsz"})
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
