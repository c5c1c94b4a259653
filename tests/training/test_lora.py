"""LoRA starts as the identity; merged it is the plain model again, with the same answers."""

from __future__ import annotations

import re

import pytest
import torch

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.groups import names_of_trained
from qwen2_audio.training.lora import LoraLinear, add_lora
from tests.tiny import tiny_model

PATTERN = r"language_model\.model\.layers\.\d+\.(self_attn|mlp)"
IDS = torch.arange(3, 30)


def layers_of(model: Qwen2Audio) -> list[str]:
    return [
        n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and re.fullmatch(PATTERN + r"\.\w+", n)
    ]


def logits(model: Qwen2Audio) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, [len(IDS)])


def wrapped(*, moved: bool) -> Qwen2Audio:
    model = tiny_model()
    add_lora(model, layers_of(model), rank=4, scale=0.5)
    if moved:
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_starts_as_identity() -> None:
    assert torch.equal(logits(wrapped(moved=False)), logits(tiny_model()))


def test_names_and_what_is_trained() -> None:
    model = tiny_model()
    names = layers_of(model)
    add_lora(model, names, rank=4, scale=0.5)
    layers = model.config.text.num_hidden_layers
    assert len(names) == 7 * layers
    assert set(names_of_trained(model)) == {f"{name}.lora_{m}" for name in names for m in "AB"}
    assert model.get_parameter(f"{names[0]}.lora_A").shape == (4, 64)


def test_only_the_correction_learns() -> None:
    model = wrapped(moved=True)
    model(IDS, [len(IDS)]).square().mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(names_of_trained(model))
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_formula(bias: bool) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(20, 12, bias=bias)
    layer = LoraLinear(base, rank=4, scale=2.0)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(7, 20, requires_grad=True)
    plain = base(x) + 2.0 * (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), plain)
    outside = torch.randn_like(plain)
    wanted = [x, layer.lora_A, layer.lora_B]
    ours, theirs = (torch.autograd.grad(y, wanted, outside) for y in (layer(x), plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
