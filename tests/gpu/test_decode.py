"""Each kernel for GPUs gives what its docstring says, in Triton's interpreter; head sizes and lengths that fill no tile."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from qwen2_audio.model.language_model import rotate

kernels = pytest.importorskip("qwen2_audio.gpu.decode", reason="wants Triton")
products = pytest.importorskip("qwen2_audio.gpu.products", reason="wants Triton")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter: exponentials of minus infinity
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_gpu.py runs the kernels"),
]
EPS = 1e-5


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


@pytest.mark.parametrize("seed", range(3))
def test_products_of_one_row(seed: int) -> None:
    torch.manual_seed(seed)
    inputs, outputs = 100 + seed, 60 - seed
    x, norm = torch.randn(1, inputs), torch.randn(inputs)
    weight, bias = torch.randn(2 * outputs, inputs), torch.randn(2 * outputs)
    found = products.product(x, weight, torch.empty(1, 2 * outputs), norm=norm, eps=EPS, bias=bias)
    torch.testing.assert_close(found, linear(normed(x, norm), weight, bias), atol=1e-4, rtol=1e-4)
    both = linear(normed(x, norm), weight)
    found = products.product(x, weight, torch.empty(1, outputs), norm=norm, eps=EPS, gated=True)
    torch.testing.assert_close(found, silu(both[:, :outputs]) * both[:, outputs:], atol=1e-3, rtol=1e-4)
    before = torch.randn(1, 2 * outputs)
    expected = before + linear(x, weight)
    torch.testing.assert_close(products.product(x, weight, before, add=True), expected, atol=1e-4, rtol=1e-4)


def test_norms_and_gates() -> None:
    torch.manual_seed(0)
    x, more, weight = torch.randn(3, 100), torch.randn(3, 100), torch.randn(100)
    expected = x + more
    torch.testing.assert_close(kernels.add_and_norm(x, more, weight, EPS), normed(expected, weight))
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(kernels.add_and_norm(x, None, weight, EPS), normed(x, weight))
    both = torch.randn(3, 2 * 1100)
    torch.testing.assert_close(kernels.gated(both), silu(both[:, :1100]) * both[:, 1100:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "past"),
    [(4, 2, [5, -1, 70]), (4, 4, [33]), (6, 2, [0]), (32, 32, [3] * 17), (2, 1, [64, 65, 31, 32])],
)
def test_attention_of_a_step_and_of_prompts(heads: int, kv_heads: int, past: list[int]) -> None:
    torch.manual_seed(0)
    rows, size, capacity = len(past), 16, 90
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * size)
    keys, values = torch.randn(2, rows, kv_heads, capacity, size)
    frequencies = 1 / 10_000 ** (torch.arange(0, size, 2) / size)
    angles = torch.arange(100)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    places = [torch.tensor([one.data_ptr() for one in tensor]) for tensor in (keys, values)]
    where = (*places, torch.full((rows,), capacity * size))
    before, expected_keys, expected_values = keys.clone(), keys.clone(), values.clone()
    turned = qkv.clone()
    found = kernels.attend(qkv, (cos, sin), where, torch.tensor(past), heads, kv_heads)
    for row, position in enumerate(past):
        if position < 0:
            assert torch.equal(keys[row], before[row])
            continue
        sizes = [heads * size, kv_heads * size, kv_heads * size]
        q, k, v = (part.unflatten(-1, (-1, size)) for part in qkv[row : row + 1].split(sizes, -1))
        whole = torch.cat([cos[position]] * 2)[None, None], torch.cat([-sin[position], sin[position]])[None, None]
        q, k = rotate(q, *whole), rotate(k, *whole)
        turned[row] = torch.cat([q.flatten(), k.flatten(), v.flatten()])
        expected_keys[row, :, position], expected_values[row, :, position] = k[0], v[0]
        seen = slice(0, position + 1)
        expected = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            expected_keys[row, None, :, seen],
            expected_values[row, None, :, seen],
            enable_gqa=True,
        )
        torch.testing.assert_close(found[row], expected[0].transpose(0, 1).flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(keys, expected_keys)
    torch.testing.assert_close(values, expected_values)
    keys.copy_(before)
    values.zero_()
    kernels.turn_and_store(qkv, (cos, sin), where, torch.arange(rows), torch.tensor(past), heads, kv_heads)
    torch.testing.assert_close(qkv, turned)
    torch.testing.assert_close(keys, expected_keys)
    for row, position in enumerate(past):
        if position >= 0:
            torch.testing.assert_close(values[row, :, position], expected_values[row, :, position])
