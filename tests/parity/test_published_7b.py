"""The published 7B model, built without its weights: sizes, names and shapes."""

from __future__ import annotations

import pytest
import torch

from qwen2_audio.checkpoints.names import canonical
from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.model.qwen2_audio import Qwen2Audio

CONFIG = {  # the hub's sparse config.json of Qwen2-Audio-7B-Instruct
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "model_type": "qwen2_audio",
    "audio_token_index": 151646,
    "ignore_index": -100,
    "vocab_size": 156032,
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_layerdrop": 0.0,
        "d_model": 1280,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_function": "gelu",
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "init_std": 0.02,
        "max_source_positions": 1500,
    },
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 156032,
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-05,
        "sliding_window": 32768,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
    },
}

SHAPES = {
    "audio_tower.conv1.weight": (1280, 128, 3),
    "audio_tower.conv1.bias": (1280,),
    "audio_tower.conv2.weight": (1280, 1280, 3),
    "audio_tower.embed_positions.weight": (1500, 1280),
    "audio_tower.layers.0.self_attn.q_proj.weight": (1280, 1280),
    "audio_tower.layers.0.self_attn.q_proj.bias": (1280,),
    "audio_tower.layers.17.self_attn.v_proj.bias": (1280,),
    "audio_tower.layers.31.self_attn.out_proj.bias": (1280,),
    "audio_tower.layers.31.self_attn_layer_norm.weight": (1280,),
    "audio_tower.layers.31.fc1.weight": (5120, 1280),
    "audio_tower.layers.31.fc2.weight": (1280, 5120),
    "audio_tower.layers.31.final_layer_norm.bias": (1280,),
    "audio_tower.layer_norm.bias": (1280,),
    "multi_modal_projector.linear.weight": (4096, 1280),
    "multi_modal_projector.linear.bias": (4096,),
    "language_model.model.embed_tokens.weight": (156032, 4096),
    "language_model.model.layers.0.input_layernorm.weight": (4096,),
    "language_model.model.layers.0.self_attn.k_proj.weight": (4096, 4096),
    "language_model.model.layers.0.self_attn.k_proj.bias": (4096,),
    "language_model.model.layers.31.self_attn.o_proj.weight": (4096, 4096),
    "language_model.model.layers.31.post_attention_layernorm.weight": (4096,),
    "language_model.model.layers.31.mlp.gate_proj.weight": (11008, 4096),
    "language_model.model.layers.31.mlp.down_proj.weight": (4096, 11008),
    "language_model.model.norm.weight": (4096,),
    "language_model.lm_head.weight": (156032, 4096),
}
ABSENT = (
    "audio_tower.layers.0.self_attn.k_proj.bias",
    "language_model.model.layers.0.self_attn.o_proj.bias",
    "language_model.model.layers.0.mlp.up_proj.bias",
    "language_model.lm_head.bias",
)


@pytest.fixture(scope="module")
def published() -> Qwen2Audio:
    with torch.device("meta"):
        return Qwen2Audio(Qwen2AudioConfig.from_hf(CONFIG))


def test_size(published: Qwen2Audio) -> None:
    state = published.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 8_397_094_912
    assert len(state) == 876
    assert sum(t.numel() for n, t in state.items() if n.startswith("audio_tower.")) == 636_968_960
    assert sum(n.startswith("audio_tower.") for n in state) == 487
    assert sum(t.numel() for n, t in state.items() if n.startswith("language_model.")) == 7_754_878_976


def test_names_and_shapes(published: Qwen2Audio) -> None:
    state = published.state_dict()
    assert {name: tuple(state[name].shape) for name in SHAPES} == SHAPES
    assert not [name for name in ABSENT if name in state]


@pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::FutureWarning:transformers")
def test_same_tensors_as_transformers(published: Qwen2Audio) -> None:
    from transformers import Qwen2AudioConfig as TheirConfig
    from transformers import Qwen2AudioForConditionalGeneration

    with torch.device("meta"):
        theirs = Qwen2AudioForConditionalGeneration(TheirConfig.from_dict(dict(CONFIG)))
    mapped = {canonical(name): tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert mapped == {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}


def test_sparse_config_falls_back_to_defaults() -> None:
    config = Qwen2AudioConfig.from_hf(CONFIG)
    assert (config.text.hidden_size, config.text.num_hidden_layers, config.text.num_attention_heads) == (4096, 32, 32)
    assert (config.text.num_key_value_heads, config.text.head_dim) == (32, 128)
    assert (config.text.rms_norm_eps, config.text.rope_theta, config.text.max_position_embeddings) == (1e-5, 1e4, 8192)
    assert not config.text.tie_word_embeddings
    assert config.audio_token_id == 151646
