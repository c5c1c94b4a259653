"""Rotary positions and SwiGLU in one pass equal the plain ones, forward and backward (in Triton's interpreter)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from qwen2_audio.model.language_model import rotate

one_pass = pytest.importorskip("qwen2_audio.gpu.elementwise", reason="wants Triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run in the interpreter here")


@pytest.mark.parametrize(("heads", "size"), [(5, 16), (20, 8)])
def test_rotary_positions(heads: int, size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, (heads + 3) * size)[:, : heads * size].unflatten(-1, (-1, size)).requires_grad_()
    angles = torch.randn(7, 1, size // 2)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    found, expected, outside = one_pass.rotate(x, cos, sin), rotate(x, cos, sin), torch.randn(7, heads, size)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, outside)[0] for y in (found, expected)))


def test_gates() -> None:
    torch.manual_seed(0)
    gate, up, outside = torch.randn(3, 5, 1300)
    gate.requires_grad_()
    up.requires_grad_()
    found, expected = one_pass.gated(gate, up), silu(gate) * up
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y, (gate, up), outside) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
