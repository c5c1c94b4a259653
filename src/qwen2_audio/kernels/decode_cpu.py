"""What a decode step does on a CPU, one new token for each sequence, compiled by Numba.

A step reads every weight once and does little with each, so it can be as quick as memory is read. Torch is far from that: it
reads the weights for a single row at a fraction of the memory's speed, and a layer's hundred small operations cost as much as
its products. The plain version is `qwen2_audio.model.language_model.DecoderLayer`.

Weights are float32 [out, in] with scales of one, or int8 with a float32 scale [out] for each output, spread by a Hadamard
matrix (see `qwen2_audio.checkpoints.quantize`); then what comes in is spread the same way, and not rounded. Where the CPU has
the instructions for it, int8 is multiplied by `product_in_bytes` instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qwen2_audio.kernels.prefetch import read_ahead
from qwen2_audio.kernels.spreading import spread
from qwen2_audio.kernels.vectors import OPTIONS, TILE, tile_of_four, tile_of_layers, tile_of_one, tiles_of_layers
from qwen2_audio.kernels.vnni import multiplies_bytes as multiplies_bytes
from qwen2_audio.kernels.vnni import product_in_bytes as product_in_bytes

Array = NDArray[np.float32]
Weights = NDArray[Any]
_compiled = njit(**OPTIONS, fastmath={"reassoc", "contract", "nsz"})
_parallel = njit(**OPTIONS, fastmath={"reassoc", "contract", "nsz"}, parallel=True)
_in_order = {"contract", "nsz"}
"""Sums are made as they are written."""


def can_share_work() -> bool:
    """Whether Numba has found OpenMP or TBB. Its own scheduler is slow; two threads that use it at once end the process."""
    try:
        numba.config.THREADING_LAYER = "threadsafe"  # heeded once, before the first parallel work of the process
        numba.set_num_threads(numba.get_num_threads())
        return bool(numba.threading_layer() != "workqueue")
    except ValueError:
        return False


def use_threads(count: int) -> None:
    """Let the calling thread's kernels run on so many threads, if there are as many."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


@_compiled
def normed(x: Array, weight: Array, eps: float, out: Array) -> None:
    """RMSNorm of x [rows, size] into `out`."""
    rows, size = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(size):
            total += x[row, i] * x[row, i]
        factor = np.float32(1 / math.sqrt(total / size + eps))
        for i in range(size):
            out[row, i] = x[row, i] * factor * weight[i]


@_compiled
def add(x: Array, more: Array) -> None:
    """Add `more` to x [rows, size] in place."""
    rows, size = x.shape
    for row in range(rows):
        for i in range(size):
            x[row, i] += more[row, i]


@_parallel
def product(
    weights: Sequence[Weights], scales: Sequence[Array], biases: Sequence[Array], block: int, x: Array, out: Array
) -> None:
    """Linear layers with a common input x [rows, in], which is left spread, into `out` [rows, all their outputs].

    Args:
        weights, scales, biases: tuples of [out, in], [out] and [out].
    """
    rows, size = x.shape
    for row in range(rows):
        spread(x[row], block)
    for place in prange(out.shape[1]):
        layer, start = 0, 0
        while place >= start + weights[layer].shape[0]:
            start += weights[layer].shape[0]
            layer += 1
        output = place - start
        row_of_weights, scale, bias = weights[layer][output], scales[layer][output], biases[layer][output]
        read_ahead(row_of_weights, 0, size)
        row = 0
        while row + 4 <= rows:
            a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(size):
                weight = np.float32(row_of_weights[i])
                a += weight * x[row, i]
                b += weight * x[row + 1, i]
                c += weight * x[row + 2, i]
                d += weight * x[row + 3, i]
            out[row, place], out[row + 1, place] = a * scale + bias, b * scale + bias
            out[row + 2, place], out[row + 3, place] = c * scale + bias, d * scale + bias
            row += 4
        while row < rows:
            a = np.float32(0)
            for i in range(size):
                a += np.float32(row_of_weights[i]) * x[row, i]
            out[row, place] = a * scale + bias
            row += 1


@njit(**OPTIONS, fastmath=_in_order, parallel=True)
def product_in_tiles(weights: Sequence[Weights], biases: Sequence[Array], x: Array, out: Array) -> None:
    """Linear layers in float32 of at least 4 outputs with a common input x [rows, in] into `out` [rows, all their outputs], in
    tiles of 4 outputs and 4 rows, or one where there are fewer; the last tile of a layer, or of the rows, reaches back over the
    one before it. A row is the same alone and in company.

    Args:
        weights, biases: tuples of [out, in] and [out].
    """
    rows, size = x.shape
    groups = (rows + TILE - 1) // TILE
    for number in prange(tiles_of_layers(weights)):
        layer, first, place = tile_of_layers(weights, number)
        matrix, bias, share = weights[layer], biases[layer], TILE * size // groups
        for group in range(groups):
            read_ahead(matrix, first * size + group * share, share)
            if rows >= TILE:
                tile_of_four(matrix, bias, first, x, min(TILE * group, rows - TILE), out, place)
        if rows < TILE:
            for row in range(rows):
                tile_of_one(matrix, bias, first, x, row, out, place)


@njit(**OPTIONS, fastmath=_in_order)
def exponentials(x: Array) -> None:
    """exp(x) in place of x [n], to two units in the last place for what is not below 1e-37; smaller results are about that, and
    what is not a number need not stay so.

    2^k * exp(r) with |r| <= ln(2) / 2, whose series ends after eight terms; without branches, so that it is vectorised,
    which calls of the C library are not.
    """
    powers = np.empty(len(x), np.int32)
    for i in range(len(x)):
        clipped = min(max(x[i], np.float32(-86)), np.float32(88))
        power = np.float32(math.floor(clipped * np.float32(1.44269504) + np.float32(0.5)))
        r = (clipped - power * np.float32(0.693359375)) + power * np.float32(2.12194440e-4)
        series = np.float32(1 / 5040)
        series = series * r + np.float32(1 / 720)
        series = series * r + np.float32(1 / 120)
        series = series * r + np.float32(1 / 24)
        series = series * r + np.float32(1 / 6)
        series = series * r + np.float32(0.5)
        series = series * r + np.float32(1)
        x[i] = series * r + np.float32(1)
        powers[i] = (np.int32(power) + 127) << 23  # the bits of 2^power
    scale = powers.view(np.float32)
    for i in range(len(x)):
        x[i] *= scale[i]


@_compiled
def attention_alone(
    qkv: Array, cos: Array, sin: Array, keys: Array, values: Array, past: NDArray[np.int64], first: int, out: Array
) -> None:
    """Give queries and keys their rotary positions, write the new position of some rows into the cache, and let it see all of
    its row.

    Args:
        qkv: [all rows, (heads + 2 * kv_heads) * dim].
        cos, sin: [all rows, dim], as `rotary_angles` gives them: the sine carries the sign.
        keys, values: [rows, kv_heads, capacity, dim] of the cache, of these rows only.
        past: [rows], positions that each held before.
        first: where among all rows these begin.
        out: [all rows, heads * dim].
    """
    rows, _, _, dim = keys.shape
    heads = out.shape[1] // dim
    _write(qkv, cos, sin, keys, values, past, first)
    for place in range(rows * heads):
        _attend(place // heads, place % heads, qkv, keys, values, past, first, out)


@_parallel
def attention(
    qkv: Array, cos: Array, sin: Array, keys: Array, values: Array, past: NDArray[np.int64], first: int, out: Array
) -> None:
    """`attention_alone`, shared by the threads: of few positions that costs more than it saves. (Numba keeps what it compiles
    by the name of a function: the same one compiled both ways would be taken for itself.)"""
    rows, _, _, dim = keys.shape
    heads = out.shape[1] // dim
    _write(qkv, cos, sin, keys, values, past, first)
    for place in prange(rows * heads):
        _attend(place // heads, place % heads, qkv, keys, values, past, first, out)


@_compiled
def _write(qkv: Array, cos: Array, sin: Array, keys: Array, values: Array, past: NDArray[np.int64], first: int) -> None:
    """Turn queries and keys by their positions, in place, and put keys and values into the cache."""
    rows, kv_heads, _, dim = keys.shape
    heads, half = qkv.shape[1] // dim - 2 * kv_heads, dim // 2
    for row in range(rows):
        new = qkv[first + row]
        for start in range(0, (heads + kv_heads) * dim, dim):
            for i in range(half):
                a, b = new[start + i], new[start + half + i]
                new[start + i] = a * cos[first + row, i] + b * sin[first + row, i]
                new[start + half + i] = b * cos[first + row, half + i] + a * sin[first + row, half + i]
        for head in range(kv_heads):
            for i in range(dim):
                keys[row, head, past[row], i] = new[(heads + head) * dim + i]
                values[row, head, past[row], i] = new[(heads + kv_heads + head) * dim + i]


@_compiled
def _attend(
    row: int, head: int, qkv: Array, keys: Array, values: Array, past: NDArray[np.int64], first: int, out: Array
) -> None:
    """What a head of a row sees."""
    _, kv_heads, _, dim = keys.shape
    shared, count = out.shape[1] // dim // kv_heads, past[row] + 1
    query = qkv[first + row, head * dim : (head + 1) * dim]
    mixed = out[first + row, head * dim : (head + 1) * dim]
    scores = np.empty(count, np.float32)
    _dots(query, keys[row, head // shared, :count], scores)
    factor, greatest = np.float32(1 / math.sqrt(dim)), np.float32(-np.inf)
    for t in range(count):
        greatest = max(greatest, scores[t])
    for t in range(count):
        scores[t] = (scores[t] - greatest) * factor
    exponentials(scores)
    total = np.float32(0)
    for t in range(count):
        total += scores[t]
    mixed[:] = 0
    _mix(scores, values[row, head // shared, :count], mixed)
    for i in range(dim):
        mixed[i] /= total


@_compiled
def _dots(query: Array, keys: Array, out: Array) -> None:
    """query [dim] times each of keys [count, dim], four at a time: what is added up stays in registers."""
    count, dim = keys.shape
    fours = count // 4 * 4
    for t in range(0, fours, 4):
        read_ahead(keys, t * dim, 4 * dim)
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(dim):
            a += query[i] * keys[t, i]
            b += query[i] * keys[t + 1, i]
            c += query[i] * keys[t + 2, i]
            d += query[i] * keys[t + 3, i]
        out[t], out[t + 1], out[t + 2], out[t + 3] = a, b, c, d
    for t in range(fours, count):
        a = np.float32(0)
        for i in range(dim):
            a += query[i] * keys[t, i]
        out[t] = a


@_compiled
def _mix(weights: Array, values: Array, out: Array) -> None:
    """Add values [count, dim], each times its weight [count], to `out` [dim], four at a time."""
    count, dim = values.shape
    fours = count // 4 * 4
    for t in range(0, fours, 4):
        read_ahead(values, t * dim, 4 * dim)
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for i in range(dim):
            out[i] += a * values[t, i] + b * values[t + 1, i] + (c * values[t + 2, i] + d * values[t + 3, i])
    for t in range(fours, count):
        for i in range(dim):
            out[i] += weights[t] * values[t, i]


@_compiled
def activated(gate_up: Array, out: Array) -> None:
    """silu(gate) * up of [rows, 2 * size] into `out` [rows, size]."""
    rows, size = out.shape
    for row in range(rows):
        for i in range(size):
            out[row, i] = -gate_up[row, i]
        exponentials(out[row])
        for i in range(size):
            out[row, i] = gate_up[row, i] / (1 + out[row, i]) * gate_up[row, size + i]
