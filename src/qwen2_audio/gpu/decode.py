"""Norms, gates and attention of the language model at inference, in Triton. The plain version of each stands in its docstring.

A row is a sequence, with its place in the key-value cache. Sums run in float32 whatever the dtype. What a row holds is read
from the device when a kernel runs, never by the host, so that all of it can be captured in a graph; a row of -1 positions is
none, and what comes out for it means nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import launch, on_its_gpu, starts_early

_LEAST_DOT = 16
"""Rows of a matrix that tensor cores multiply."""
_POSITIONS, _WARPS = 32, 2
"""Of the cache, that are attended to at once, and by how many warps."""
_PROGRAMS = 512
"""Enough to keep a GPU busy: with fewer rows, several share the positions of one."""


@triton.jit
def _add_and_norm(x, more, weight, out, size, eps, MORE: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    inside = at < size
    start = tl.program_id(0).to(tl.int64) * size
    value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if MORE:
        value += tl.load(more + start + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + start + at, value.to(x.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / size + eps)
    value *= scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + at, value.to(out.dtype.element_ty), mask=inside)


@on_its_gpu
def add_and_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`x += more; rms_norm(x) * weight`, of x and more [rows, size]; without `more`, x stays."""
    out = torch.empty_like(x)
    _add_and_norm[(len(x),)](
        x, more, weight, out, x.shape[1], eps,
        MORE=more is not None, SIZE=triton.next_power_of_2(x.shape[1]), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _gated(both, out, size, SIZE: tl.constexpr):
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < size
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(both + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + (row * 2 + 1) * size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


@on_its_gpu
def gated(both: Tensor) -> Tensor:
    """`silu(gate) * up`, [rows, size], of both side by side [rows, 2 * size]."""
    size = both.shape[1] // 2
    out = both.new_empty(len(both), size)
    _gated[(len(both), triton.cdiv(size, 1024))](both, out, size, SIZE=1024, num_warps=4)
    return out


@triton.jit
def _turn_and_store(
    qkv, cos, sin, keys, values, strides, owners, positions, width,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    position = tl.load(positions + token)
    if position >= 0:
        half: tl.constexpr = SIZE // 2
        head = tl.program_id(1) * TILE + tl.arange(0, TILE)
        d = tl.arange(0, half)
        known = (head < HEADS + 2 * KV_HEADS)[:, None]
        start = qkv + token.to(tl.int64) * width + head[:, None] * SIZE + d[None, :]
        left = tl.load(start, mask=known, other=0.0)
        right = tl.load(start + half, mask=known, other=0.0)
        kind = left.dtype
        cosine = tl.load(cos + position * half + d)[None, :]
        sine = tl.load(sin + position * half + d)[None, :]
        a, b = left.to(tl.float32), right.to(tl.float32)
        turns = (head < HEADS + KV_HEADS)[:, None]
        left = tl.where(turns, (a * cosine - b * sine).to(kind), left)
        right = tl.where(turns, (b * cosine + a * sine).to(kind), right)
        tl.store(start, left, mask=turns)
        tl.store(start + half, right, mask=turns)
        row = tl.load(owners + token)
        k_row = tl.multiple_of(tl.load(keys + row).to(tl.pointer_type(kind)), 16)
        v_row = tl.multiple_of(tl.load(values + row).to(tl.pointer_type(kind)), 16)
        stride = tl.load(strides + row)
        at = position * SIZE + d[None, :]
        is_key = (head >= HEADS)[:, None] & turns
        is_value = (head >= HEADS + KV_HEADS)[:, None] & known
        key = k_row + (head - HEADS)[:, None] * stride + at
        tl.store(key, left, mask=is_key)
        tl.store(key + half, right, mask=is_key)
        value = v_row + (head - HEADS - KV_HEADS)[:, None] * stride + at
        tl.store(value, left, mask=is_value)
        tl.store(value + half, right, mask=is_value)


@on_its_gpu
def turn_and_store(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor, Tensor],
    owners: Tensor,
    positions: Tensor,
    heads: int,
    kv_heads: int,
) -> None:
    """Turn queries and keys where they lie, and write keys and values to their rows.

    Args:
        qkv: [tokens, (heads + 2 * kv_heads) * head_dim].
        angles, rows: see `attend`.
        owners, positions: int64 [tokens], the row of each and its position there; -1 is no token.
    """
    size = 2 * angles[0].shape[1]
    _turn_and_store[(len(qkv), triton.cdiv(heads + 2 * kv_heads, 16))](
        qkv, *angles, *rows, owners, positions, qkv.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, TILE=16, SIZE=size, num_warps=4,
    )  # fmt: skip


@triton.jit
def _attend(
    qkv, cos, sin, keys, values, strides, past, out, sums, greatest, width, scale,
    HEADS: tl.constexpr, SHARED: tl.constexpr, TOGETHER: tl.constexpr, SIZE: tl.constexpr,
    POSITIONS: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(past + row)
    if length >= 0:
        kind = out.dtype.element_ty
        d = tl.arange(0, SIZE)
        half: tl.constexpr = SIZE // 2
        partner = (d + half) % SIZE
        cosine = tl.load(cos + length * half + d % half)
        sine = tl.where(d < half, -1.0, 1.0) * tl.load(sin + length * half + d % half)
        ours = tl.arange(0, TOGETHER)
        mine = ours < SHARED
        start = qkv + row.to(tl.int64) * width
        place = start + (head * SHARED + ours)[:, None] * SIZE
        query = tl.load(place + d[None, :], mask=mine[:, None], other=0.0).to(tl.float32) * cosine[None, :]
        query += tl.load(place + partner[None, :], mask=mine[:, None], other=0.0).to(tl.float32) * sine[None, :]
        query = query.to(kind)
        stride = tl.load(strides + row)
        k_row = tl.multiple_of(tl.load(keys + row).to(tl.pointer_type(kind)), 16) + head * stride
        v_row = tl.multiple_of(tl.load(values + row).to(tl.pointer_type(kind)), 16) + head * stride
        place = start + (HEADS * SHARED + head) * SIZE
        new = tl.load(place + d).to(tl.float32) * cosine + tl.load(place + partner).to(tl.float32) * sine
        key = new.to(kind)
        value = tl.load(start + (HEADS * (SHARED + 1) + head) * SIZE + d)
        if split == 0:
            tl.store(k_row + length * SIZE + d, key)
            tl.store(v_row + length * SIZE + d, value)
        own = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale
        best = tl.where(split == 0, own, float("-inf"))
        weight = tl.where(split == 0, 1.0, 0.0) + tl.zeros([TOGETHER], tl.float32)
        mixed = weight[:, None] * value.to(tl.float32)[None, :]
        share = tl.cdiv(tl.cdiv(length, SPLITS), POSITIONS) * POSITIONS
        for first in range(split * share, tl.minimum((split + 1) * share, length), POSITIONS):
            at = first + tl.arange(0, POSITIONS)
            held = at < length
            k = tl.load(k_row + at[:, None] * SIZE + d[None, :], mask=held[:, None], other=0.0)
            v = tl.load(v_row + at[:, None] * SIZE + d[None, :], mask=held[:, None], other=0.0)
            score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
            score = tl.where(held[None, :], score, float("-inf"))
            new_best = tl.maximum(best, tl.max(score, axis=1))
            faded = tl.exp(best - new_best)
            score = tl.exp(score - new_best[:, None])
            weight = weight * faded + tl.sum(score, axis=1)
            mixed = mixed * faded[:, None] + tl.dot(score.to(kind), v, input_precision="ieee")
            best = new_best
        whole = row.to(tl.int64) * HEADS * SHARED + head * SHARED + ours
        if SPLITS == 1:
            tl.store(out + whole[:, None] * SIZE + d[None, :], (mixed / weight[:, None]).to(kind), mask=mine[:, None])
        else:
            part = whole * SPLITS + split
            tl.store(sums + part[:, None] * SIZE + d[None, :], mixed, mask=mine[:, None])
            tl.store(greatest + part * 2, best, mask=mine)
            tl.store(greatest + part * 2 + 1, weight, mask=mine)


@triton.jit
def _joined(sums, greatest, past, out, heads, SIZE: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row, head = tl.program_id(0), tl.program_id(1)
    if tl.load(past + row) >= 0:
        whole = row.to(tl.int64) * heads + head
        split, d = tl.arange(0, SPLITS), tl.arange(0, SIZE)
        best = tl.load(greatest + (whole * SPLITS + split) * 2)
        weight = tl.load(greatest + (whole * SPLITS + split) * 2 + 1)
        faded = tl.exp(best - tl.max(best, axis=0))
        mixed = tl.load(sums + (whole * SPLITS + split)[:, None] * SIZE + d[None, :])
        mixed = tl.sum(mixed * faded[:, None], axis=0) / tl.sum(weight * faded, axis=0)
        tl.store(out + whole * SIZE + d, mixed.to(out.dtype.element_ty))


@on_its_gpu
def attend(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor, Tensor],
    past: Tensor,
    heads: int,
    kv_heads: int,
) -> Tensor:
    """Turn queries and keys by their position, write keys and values behind what their row holds, and attend to all of it;
    [rows, heads * head_dim].

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * head_dim].
        angles: cosines and sines, float32 [positions, head_dim / 2] each.
        rows: int64 [rows] each: the addresses of a row's keys and of its values [kv_heads, capacity, head_dim], in the dtype of
            `qkv`, and how many numbers a head of them is from the next.
        past: int64 [rows], positions that each row holds.
    """
    size, shared = 2 * angles[0].shape[1], heads // kv_heads
    out = qkv.new_empty(len(qkv), heads * size)
    splits = min(16, triton.next_power_of_2(max(1, _PROGRAMS // (len(qkv) * kv_heads))))
    sums = out if splits == 1 else out.new_empty(out.numel() * splits, dtype=torch.float32)
    greatest = out if splits == 1 else out.new_empty(len(qkv) * heads * splits * 2, dtype=torch.float32)
    keys, values, strides = rows
    early = starts_early() and len(qkv) == 1
    _attend[(len(qkv), kv_heads, splits)](
        qkv, *angles, keys, values, strides, past, out, sums, greatest, qkv.shape[1], size**-0.5,
        HEADS=kv_heads, SHARED=shared, TOGETHER=max(_LEAST_DOT, triton.next_power_of_2(shared)), SIZE=size,
        POSITIONS=_POSITIONS, SPLITS=splits, EARLY=early, num_warps=_WARPS, **launch(early),
    )  # fmt: skip
    if splits > 1:
        _joined[(len(qkv), heads)](
            sums, greatest, past, out, heads, SIZE=size, SPLITS=splits, EARLY=early, num_warps=2, **launch(early)
        )
    return out
