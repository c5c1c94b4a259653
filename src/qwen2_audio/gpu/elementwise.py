"""Rotary positions and SwiGLU on a GPU in one pass over memory each, forward and backward, in Triton. The plain versions are
`language_model.turned` and `language_model.gated` without this file."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen2_audio.gpu.abilities import on_its_gpu

_HEADS = 16
"""That a program turns."""
_NUMBERS = 1024
"""That a program gates."""


@triton.jit
def _rotate(x, cos, sin, out, heads, stride, direction, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    known = (head < heads)[:, None]
    cosine = tl.load(cos + token * 2 * HALF + d).to(tl.float32)[None, :]
    sine = tl.load(sin + token * 2 * HALF + HALF + d).to(tl.float32)[None, :] * direction
    given = x + token * stride + head[:, None] * 2 * HALF + d[None, :]
    left = tl.load(given, mask=known, other=0.0).to(tl.float32)
    right = tl.load(given + HALF, mask=known, other=0.0).to(tl.float32)
    place = out + (token * heads + head[:, None]) * 2 * HALF + d[None, :]
    tl.store(place, (left * cosine - right * sine).to(out.dtype.element_ty), mask=known)
    tl.store(place + HALF, (right * cosine + left * sine).to(out.dtype.element_ty), mask=known)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    if x.stride()[1:] != (x.shape[2], 1):
        x = x.contiguous()
    tokens, heads, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rotate[(tokens, triton.cdiv(heads, _HEADS))](
        x, cos, sin, out, heads, x.stride(0), direction, HEADS=_HEADS, HALF=size // 2, num_warps=4
    )
    return out


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, -1.0), None, None


@on_its_gpu
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `language_model.rotate`; heads of x [tokens, heads, head_dim] lie behind each other."""
    return _Rotation.apply(x, cos.contiguous(), sin.contiguous())


@triton.jit
def _gate(gate, up, out, size, gate_stride, up_stride, NUMBERS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < size
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, (g / (1.0 + tl.exp(-g)) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_back(gate, up, gradient, of_gate, of_up, size, gate_stride, up_stride, stride, NUMBERS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < size
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(gradient + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-g))
    tl.store(
        of_gate + row * size + at, (y * u * share * (1.0 + g * (1.0 - share))).to(of_gate.dtype.element_ty), mask=inside
    )
    tl.store(of_up + row * size + at, (y * g * share).to(of_up.dtype.element_ty), mask=inside)


class _Gating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = _rows(gate), _rows(up)
        ctx.save_for_backward(gate, up)
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        _gate[_grid(gate)](gate, up, out, gate.shape[1], gate.stride(0), up.stride(0), NUMBERS=_NUMBERS, num_warps=4)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gradient = _rows(gradients[0])
        of_gate, of_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
        _gate_back[_grid(gate)](
            gate, up, gradient, of_gate, of_up, gate.shape[1], gate.stride(0), up.stride(0), gradient.stride(0),
            NUMBERS=_NUMBERS, num_warps=4,
        )  # fmt: skip
        return of_gate, of_up


@on_its_gpu
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, [tokens, size]."""
    return _Gating.apply(gate, up)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _grid(x: Tensor) -> tuple[int, int]:
    return len(x), triton.cdiv(x.shape[1], _NUMBERS)
