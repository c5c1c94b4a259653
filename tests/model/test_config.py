"""Configuration: in and out, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from qwen2_audio.config import MIN_SAMPLES, Qwen2AudioConfig, audio_tokens, mel_frames
from qwen2_audio.errors import CheckpointError
from tests.tiny import tiny_config


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(seed: int, tied: bool) -> None:
    config = tiny_config(seed, mel_bins=80, gqa=bool(seed), tied=tied)
    assert Qwen2AudioConfig.from_hf(config.to_hf()) == config


def test_old_spellings() -> None:
    published = tiny_config().to_hf()
    published["audio_token_id"] = published.pop("audio_token_index")
    published["text_config"]["rope_theta"] = 5000
    del published["text_config"]["rope_parameters"]
    config = Qwen2AudioConfig.from_hf(published)
    assert config.text.rope_theta == 5000.0
    assert config.audio_token_id == tiny_config().audio_token_id


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("audio_config", {"d_model": 30}, "d_model 30"),
        ("audio_config", {"max_source_positions": 700}, "max_source_positions"),
        ("audio_config", {"activation_function": "relu"}, "activation_function"),
        ("audio_config", {"scale_embedding": True}, "scale_embedding"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"use_sliding_window": True}, "use_sliding_window"),
        ("text_config", {"use_mrope": True}, "use_mrope"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        ("text_config", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type"),
        ("text_config", {"num_attention_heads": 5}, "5 heads"),
        ("text_config", {"num_key_value_heads": 3}, "3 key-value heads"),
        ("text_config", {"vocab_size": 10}, "audio_token_index"),
    ],
)
def test_refused(section: str, change: dict[str, Any], named: str) -> None:
    published = tiny_config().to_hf()
    published[section] |= change
    with pytest.raises(CheckpointError, match=named):
        Qwen2AudioConfig.from_hf(published)


def test_another_model() -> None:
    with pytest.raises(CheckpointError, match=r"not a Qwen2-Audio checkpoint.*'whisper'"):
        Qwen2AudioConfig.from_hf({"model_type": "whisper"})


def test_shortest_clip() -> None:
    assert audio_tokens(mel_frames(MIN_SAMPLES)) == 1
    assert audio_tokens(mel_frames(MIN_SAMPLES - 1)) == 0
