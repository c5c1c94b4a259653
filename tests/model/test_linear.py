"""Packed linear layers give what plain ones give, and never a stale result."""

from __future__ import annotations

import pytest
import torch

from qwen2_audio.kernels.packing import pack_linears
from qwen2_audio.model.linear import Linear, project
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.mel import log_mel
from qwen2_audio.training.lora import add_lora
from tests.tiny import sound, tiny_config, tiny_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("gqa", [True, False])
def test_packed_model_equals_plain_model(gqa: bool) -> None:
    plain, packed = (tiny_model(tiny_config(1, 80, gqa), 1) for _ in range(2))
    pack_linears(packed)
    clip = log_mel(sound(1.7), 80)
    for tokens in (1, 2, 7, 33):
        with torch.inference_mode():
            ids = torch.arange(tokens)
            torch.testing.assert_close(packed(ids, [tokens]), plain(ids, [tokens]), atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        mels = ([clip.mel], [clip.frames])
        torch.testing.assert_close(packed.encode_audio(*mels), plain.encode_audio(*mels), atol=1e-4, rtol=1e-4)


def test_layers_with_the_same_input_are_multiplied_as_one() -> None:
    model = tiny_model()
    pack_linears(model)
    attention = model.language_model.model.layers[0].self_attn
    assert attention.q_proj.packed is not None
    assert attention.q_proj.packed.sizes == [64, 32, 32]
    assert attention.k_proj.packed is None


def test_a_changed_weight_is_never_stale() -> None:
    layer = Linear(8, 4)
    model = torch.nn.Sequential(layer)
    pack_linears(model)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_gradients_and_lora_bypass_the_packed_weights() -> None:
    model: Qwen2Audio = tiny_model()
    pack_linears(model)
    add_lora(model, [n for n, _ in model.named_modules() if n.endswith((".k_proj", ".gate_proj"))], 2, 1.0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(std=0.1)
    ids = torch.arange(9)
    with torch.inference_mode():
        inferred = model(ids, [9])
    trained = model(ids, [9])
    assert trained.requires_grad
    torch.testing.assert_close(inferred, trained.detach(), atol=1e-4, rtol=1e-4)


def test_project_without_packing() -> None:
    layers = [Linear(8, 4), Linear(8, 2, bias=False)]
    x = torch.randn(5, 8)
    for got, layer in zip(project(layers, x), layers, strict=True):
        torch.testing.assert_close(got, torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_moved_and_converted_weights_are_never_stale() -> None:
    layer = Linear(8, 4)
    model = torch.nn.Sequential(layer)
    pack_linears(model)
    model.bfloat16()
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert model(x).dtype == torch.bfloat16
