"""What is rounded to bfloat16 once, before training."""

from __future__ import annotations

import pytest
import torch

from qwen2_audio.training.lora import add_lora
from qwen2_audio.training.memory import multiply_in_bfloat16
from tests.tiny import tiny_config, tiny_model

QUERY, VALUE, OUTPUT = (f"language_model.model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj", "o_proj"))
GIVEN = "audio_tower.layers.0.fc2.weight"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for a GPU
def test_what_does_not_learn_is_rounded_once(device: str, tied: bool) -> None:
    model = tiny_model(tiny_config(tied=tied)).to(device).requires_grad_(False)
    if tied:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    add_lora(model, [QUERY], 2, 1.0)
    add_lora(model, [VALUE], 2, 1.0, dora=True)
    model.get_submodule(OUTPUT).requires_grad_(True)
    multiply_in_bfloat16(model, [GIVEN])
    rounded = {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
    assert {f"{QUERY}.base.weight", f"{QUERY}.base.bias"} <= rounded
    assert not rounded & {
        f"{QUERY}.lora_A",
        f"{VALUE}.base.weight",
        f"{OUTPUT}.weight",
        "language_model.model.norm.weight",
    }
    assert not rounded & {"language_model.model.embed_tokens.weight", GIVEN}
    on_gpu = {"language_model.lm_head.weight"} if not tied else set()
    on_gpu |= {"audio_tower.layers.0.fc1.weight", "multi_modal_projector.linear.weight"}
    assert (rounded & on_gpu == on_gpu) if device == "meta" else not rounded & on_gpu
