"""A single row times weights in 4 bits is what it is with the weights widened: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from qwen2_audio.checkpoints.int4 import Int4Weight
from qwen2_audio.model.linear import Linear

products = pytest.importorskip("qwen2_audio.gpu.products", reason="wants Triton")
EPS = 1e-5


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 5), (384, 9), (37 * 128, 6)])
@pytest.mark.parametrize("loud", [1, 1000])
def test_a_row_in_4_bits(inputs: int, outputs: int, loud: float) -> None:
    torch.manual_seed(inputs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = Linear(inputs, 2 * outputs, device=device)
    rounded = Int4Weight([layer])
    weight, bias = rounded.widened(torch.float32), rounded.bias
    x, norm = loud * torch.randn(1, inputs, device=device), torch.rand(inputs, device=device) + 0.5
    x[0, 3] *= 50  # as some channels of transformers are
    normed = x * torch.rsqrt(x.pow(2).mean() + EPS) * norm

    def empty(size: int) -> torch.Tensor:
        return torch.full((1, size), torch.nan, device=device)

    found = products.product(x, rounded.parts, empty(2 * outputs), norm=norm, eps=EPS, bias=bias)
    torch.testing.assert_close(found, linear(normed, weight, bias), atol=2e-4, rtol=2e-4)
    found = products.product(x, rounded.parts, empty(outputs), norm=norm, eps=EPS, gated=True)
    both = linear(normed, weight)
    torch.testing.assert_close(found, silu(both[:, :outputs]) * both[:, outputs:], atol=2e-4, rtol=2e-4)
    before = torch.randn(1, 2 * outputs, device=device)
    expected = before + linear(x, weight)
    found = products.product(x, rounded.parts, before, add=True)
    torch.testing.assert_close(found, expected, atol=2e-4 * loud, rtol=2e-4)
