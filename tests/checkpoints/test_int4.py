"""Weights in 4 bits: how far they are from what they were, and the kernels against plain torch (in Triton's interpreter)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from qwen2_audio import UsageError
from qwen2_audio.checkpoints.int4 import Int4Linear, Int4Weight, put_into_int4
from qwen2_audio.model.linear import Linear, project

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter


def layers(*outputs: int, inputs: int = 256) -> list[Linear]:
    torch.manual_seed(0)
    return [Linear(inputs, count, bias=number == 0).requires_grad_(False) for number, count in enumerate(outputs)]


def test_no_weight_is_further_off_than_half_a_step() -> None:
    group = layers(60, 30)
    found, exact = Int4Weight(group).widened(torch.float32), torch.cat([layer.weight for layer in group])
    of = exact.unflatten(1, (-1, 64))
    half = (of.amax(-1) - of.amin(-1)) / 30
    assert ((found - exact).unflatten(1, (-1, 64)).abs() <= 1.02 * half[..., None] + 1e-4).all()
    assert len(found.unflatten(1, (-1, 64))[3, 1].unique()) <= 16


def test_layers_are_multiplied_together_and_refuse_sizes_that_do_not_fit() -> None:
    parent = torch.nn.Module()
    for name, layer in zip(("q_proj", "k_proj", "v_proj"), layers(128, 64, 64), strict=True):
        parent.add_module(name, layer)
    exact = [parent.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")]
    x = torch.randn(5, 256)
    expected = project(exact, x)
    put_into_int4(parent)
    small = [parent.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")]
    assert all(isinstance(layer, Int4Linear) for layer in small)
    for a, b in zip(project(small, x), expected, strict=True):
        assert 0 < (a - b).norm() / b.norm() < 0.15
    with pytest.raises(RuntimeError, match="together"):
        project(small[:2], x)
    with pytest.raises(UsageError, match="multiple of 128, not 64"):
        Int4Weight(layers(8, inputs=64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run in the interpreter here")
@pytest.mark.parametrize("inputs", [128, 384, 1152])
def test_kernels(inputs: int) -> None:
    kernels = pytest.importorskip("qwen2_audio.gpu.int4", reason="wants Triton")
    product = pytest.importorskip("qwen2_audio.gpu.products").product
    weight = Int4Weight(layers(70, 50, inputs=inputs))
    wide = weight.widened(torch.float32)
    torch.testing.assert_close(kernels.widened(weight.parts, torch.float32), wide)
    x, norm = torch.randn(5, inputs), torch.randn(inputs)
    found = kernels.product_of_many(x, weight.parts, weight.bias)
    torch.testing.assert_close(found, linear(x, wide, weight.bias), atol=1e-4, rtol=1e-4)
    x = x[:1]
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * norm
    found = product(x, weight.parts, torch.empty(1, 120), norm=norm, eps=1e-5, bias=weight.bias)
    torch.testing.assert_close(found, linear(normed, wide, weight.bias), atol=1e-4, rtol=1e-4)
    found = product(x, weight.parts, torch.empty(1, 60), norm=norm, eps=1e-5, gated=True)
    torch.testing.assert_close(found, silu(normed @ wide[:60].T) * (normed @ wide[60:].T), atol=1e-4, rtol=1e-4)
    before = torch.randn(1, 120)
    expected = before + x @ wide.T
    torch.testing.assert_close(product(x, weight.parts, before, add=True), expected, atol=1e-4, rtol=1e-4)
