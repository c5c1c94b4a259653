"""The kernels behind `attend()` agree with each other."""

from __future__ import annotations

import pytest
import torch

from qwen2_audio.model.attention import attend


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_bfloat16_on_cpu_equals_float32(causal: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 33]
    q, k, v = (torch.randn(sum(lengths), heads, 8).bfloat16() for heads in (6, kv_heads, kv_heads))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    outside = torch.randn(sum(lengths), 6, 8)
    short = attend(q, k, v, lengths, causal=causal)
    exact = attend(q.float(), k.float(), v.float(), lengths, causal=causal)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), exact, atol=0.03, rtol=0.03)
    gradients = (torch.autograd.grad(y, (q, k, v), outside.to(y.dtype)) for y in (short, exact))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=0.1, rtol=0.05)
