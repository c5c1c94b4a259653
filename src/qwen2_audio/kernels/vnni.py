"""Products with int8 weights by the VNNI instructions of a CPU, which multiply 64 pairs of bytes at once.

They take bytes without a sign by bytes with one. What comes in is rounded to 16 bits, in steps of its row, and goes in as two
bytes: the upper and the lower one of the number of steps plus 2^15. Sums are exact, so a row is the same alone and in company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from qwen2_audio.kernels.prefetch import read_ahead
from qwen2_audio.kernels.spreading import spread
from qwen2_audio.kernels.vectors import (
    BYTE,
    FLOAT,
    OPTIONS,
    TILE,
    WIDE,
    WORD,
    added_up,
    arrays,
    compiles_for,
    function,
    lanes,
    read,
    starts,
    through,
    tile_of_layers,
    tiles_of_layers,
    write_rows,
)

Array = NDArray[np.float32]
_BYTES = 64
"""Of a vector."""
_WORDS = ir.VectorType(WORD, _BYTES // 4)
_ZERO = 1 << 15
"""What is added to a number of steps, so that none is negative."""


def multiplies_bytes() -> bool:
    """Whether Numba compiles for a CPU that has these instructions (AVX-512 VNNI)."""
    return compiles_for("avx512vnni")


def _product_of(outputs: int, rows: int) -> Any:
    """An intrinsic that multiplies so many outputs by so many rows, both powers of two.

    Its arguments: of a layer weights int8 [any, size], scales float32 [any], sums int32 [any], biases float32 [any] and the
    first output; of what comes in bytes uint8 [any, 2, size], steps float32 [any] and the first row; out float32 [any, any],
    and the place of the first output there.
    """
    to_outputs = lanes(list(range(outputs)) * rows)
    to_rows = lanes(row for row in range(rows) for _ in range(outputs))

    @intrinsic
    def product(
        _: Any, weights: Any, scales: Any, sums: Any, biases: Any, output: Any, x: Any, steps: Any, row: Any, out: Any, at: Any
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            found = arrays(context, builder, signature, args, (0, 1, 2, 3, 5, 6, 8))
            of_weights, of_scales, of_sums, of_biases, of_x, of_steps, of_out = found
            output, row, at = args[4], args[7], args[9]
            size = builder.extract_value(of_weights.shape, 1)
            multiply = function(builder, "llvm.x86.avx512.vpdpbusd.512", _WORDS, [_WORDS] * 3)
            lines = starts(builder, of_weights, size, output, outputs)
            halves = starts(builder, of_x, size, builder.mul(row, WIDE(2)), 2 * rows)
            totals = [[cgutils.alloca_once_value(builder, _WORDS(None)) for _ in lines] for _ in halves]

            def add(vector: Callable[[Any], Any]) -> None:
                known = [builder.bitcast(vector(line), _WORDS) for line in lines]
                for half, of_half in zip(halves, totals, strict=True):
                    given = builder.bitcast(vector(half), _WORDS)
                    for weight, total in zip(known, of_half, strict=True):
                        builder.store(builder.call(multiply, [builder.load(total), given, weight]), total)

            def of_outputs(kind: Any, array: Any) -> Any:
                known = read(builder, ir.VectorType(kind, outputs), array.data, output)
                return builder.shuffle_vector(known, known, to_outputs)

            through(builder, ir.VectorType(BYTE, _BYTES), size, add)
            whole = _whole(builder, totals, of_outputs(WORD, of_sums))
            step = read(builder, ir.VectorType(FLOAT, rows), of_steps.data, row)
            scale = builder.fmul(of_outputs(FLOAT, of_scales), builder.shuffle_vector(step, step, to_rows))
            y = builder.fadd(builder.fmul(builder.sitofp(whole, scale.type), scale), of_outputs(FLOAT, of_biases))
            write_rows(builder, y, of_out, row, at, outputs)
            return context.get_dummy_value()

        return types.void(weights, scales, sums, biases, output, x, steps, row, out, at), generate

    return product


def _whole(builder: Any, totals: list[list[Any]], sums: Any) -> Any:
    """The products, int64 [rows * outputs], of the sums of upper and lower bytes, by turns. What was added to each number makes
    them too many by so many times `sums`, those of the weights."""
    upper, lower = (
        added_up(builder, builder.add, [builder.load(total) for of_half in some for total in of_half])
        for some in (totals[::2], totals[1::2])
    )
    count = sums.type.count
    upper = builder.sub(upper, builder.mul(sums, sums.type([_ZERO >> 8] * count)))
    upper, lower = (builder.sext(part, ir.VectorType(WIDE, count)) for part in (upper, lower))
    return builder.add(builder.mul(upper, upper.type([256] * count)), lower)


_four_of_one, _two_of_four = _product_of(TILE, 1), _product_of(TILE // 2, TILE)


@njit(**OPTIONS)
def in_bytes(x: Array, out: NDArray[np.uint8]) -> np.float32:
    """Round x [size] to 16 bits, as upper and lower bytes [2, size]; the step, which is no number where one of x is none."""
    greatest, known = np.float32(1e-30), True
    for i in range(len(x)):
        greatest = max(greatest, abs(x[i]))
    steps = np.float32(_ZERO - 1) / greatest
    for i in range(len(x)):
        number = np.int32(np.rint(x[i] * steps)) + np.int32(_ZERO)
        out[0, i], out[1, i] = np.uint8(number >> 8), np.uint8(number & 255)
        known &= x[i] == x[i]
    return np.float32(1) / steps if known else np.float32(np.nan)


@njit(**OPTIONS, parallel=True)
def product_in_bytes(
    weights: Sequence[NDArray[np.int8]],
    scales: Sequence[Array],
    sums: Sequence[NDArray[np.int32]],
    biases: Sequence[Array],
    block: int,
    x: Array,
    out: Array,
) -> None:
    """Linear layers of at least 4 outputs with a common input x [rows, in], which is left spread, into `out` [rows, all their
    outputs]. The last tile of a layer reaches back over the one before it.

    Args:
        weights, scales, sums, biases: tuples of [out, in], [out], [out] (what the weights of each output add up to) and [out].
    """
    rows, size = x.shape
    parts, steps = np.empty((rows, 2, size), np.uint8), np.empty(rows, np.float32)
    if rows == 1:
        spread(x[0], block)
        steps[0] = in_bytes(x[0], parts[0])
    else:
        for row in prange(rows):
            spread(x[row], block)
            steps[row] = in_bytes(x[row], parts[row])
    fours = rows // TILE * TILE
    for number in prange(tiles_of_layers(weights)):
        layer, first, place = tile_of_layers(weights, number)
        matrix, scale, total, bias = weights[layer], scales[layer], sums[layer], biases[layer]
        read_ahead(matrix, first * size, TILE * size)
        for row in range(0, fours, TILE):
            for i in range(0, TILE, TILE // 2):
                _two_of_four(matrix, scale, total, bias, first + i, parts, steps, row, out, place + i)
        for row in range(fours, rows):
            _four_of_one(matrix, scale, total, bias, first, parts, steps, row, out, place)
