"""What a decode step does on a CPU, one new token for each sequence, compiled by Numba.

A step reads every weight once and does little with each, so it can be as quick as memory is read. Torch is far from that: it
reads the weights for a single row at a fraction of the memory's speed, and a layer's hundred small operations cost as much as
its products. The plain version is `qwen2_audio.model.language_model.DecoderLayer`.

Weights are float32 [out, in] with scales of one, or int8 with a float32 scale [out] for each output, spread by a Hadamard
matrix (see `qwen2_audio.checkpoints.quantize`); then what comes in is spread the same way, and not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Array = NDArray[np.float32]
Weights = NDArray[Any]
_OPTIONS: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"},
}  # fmt: skip
_compiled = njit(**_OPTIONS)
_parallel = njit(**_OPTIONS, parallel=True)


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


@_compiled
def _spread(x: Array, block: int) -> None:
    """Multiply every block of x [rows, size] by the Hadamard matrix of that size, in place; 1 leaves x as it is."""
    if block == 1:
        return
    rows, size = x.shape
    factor = np.float32(1 / math.sqrt(block))
    for row in range(rows):
        half = 1
        while half < block:
            for start in range(0, size, 2 * half):
                for i in range(start, start + half):
                    a, b = x[row, i], x[row, i + half]
                    x[row, i], x[row, i + half] = a + b, a - b
            half *= 2
        for i in range(size):
            x[row, i] *= factor


@_parallel
def product(
    weights: Sequence[Weights], scales: Sequence[Array], biases: Sequence[Array], block: int, x: Array, out: Array
) -> None:
    """Linear layers with a common input x [rows, in], which is left spread, into `out` [rows, all their outputs].

    Args:
        weights, scales, biases: tuples of [out, in], [out] and [out].
    """
    _spread(x, block)
    rows, size = x.shape
    for place in prange(out.shape[1]):
        layer, start = 0, 0
        while place >= start + weights[layer].shape[0]:
            start += weights[layer].shape[0]
            layer += 1
        output = place - start
        row_of_weights, scale, bias = weights[layer][output], scales[layer][output], biases[layer][output]
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


def _attention(
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
    rows, kv_heads, _, dim = keys.shape
    heads = out.shape[1] // dim
    shared, half = heads // kv_heads, dim // 2
    factor = np.float32(1 / math.sqrt(dim))
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
    for place in prange(rows * heads):
        row, head = place // heads, place % heads
        query = qkv[first + row, head * dim : (head + 1) * dim]
        mixed = out[first + row, head * dim : (head + 1) * dim]
        scores = np.empty(past[row] + 1, np.float32)
        greatest = np.float32(-np.inf)
        for t in range(len(scores)):
            dot = np.float32(0)
            for i in range(dim):
                dot += query[i] * keys[row, head // shared, t, i]
            scores[t] = dot * factor
            greatest = max(greatest, scores[t])
        total = np.float32(0)
        mixed[:] = 0
        for t in range(len(scores)):
            weight = np.float32(math.exp(scores[t] - greatest))
            total += weight
            for i in range(dim):
                mixed[i] += weight * values[row, head // shared, t, i]
        for i in range(dim):
            mixed[i] /= total


def _activated(gate_up: Array, out: Array) -> None:
    """silu(gate) * up of [rows, 2 * size] into `out` [rows, size]."""
    rows, size = out.shape
    for i in prange(size):
        for row in range(rows):
            gate = gate_up[row, i]
            out[row, i] = gate / (1 + np.float32(math.exp(-gate))) * gate_up[row, size + i]


# sharing so little work costs more than it saves, most of all while other programs want the processors
attention_alone, attention = _compiled(_attention), _parallel(_attention)
activated_alone, activated = _compiled(_activated), _parallel(_activated)
