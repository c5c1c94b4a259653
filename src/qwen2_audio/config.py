"""Model configuration: frozen dataclasses, the published `config.json` in and out, and the length arithmetic.

The published `config.json` is sparse: whatever its `text_config` leaves out falls back to the defaults of
`transformers`' `Qwen2Config`, whatever its `audio_config` leaves out to those of `Qwen2AudioEncoderConfig`. Both sets of
defaults stand below as data, so that the merge is explicit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen2_audio.errors import CheckpointError

SAMPLE_RATE = 16_000
"""Samples a second that the model hears."""
HOP_LENGTH = 160
"""Samples from one mel frame to the next (10 ms)."""
MAX_CLIP_SECONDS = 30
"""The longest clip that the encoder has positions for."""
MAX_SAMPLES = MAX_CLIP_SECONDS * SAMPLE_RATE
MAX_MEL_FRAMES = MAX_SAMPLES // HOP_LENGTH


def mel_frames(samples: int) -> int:
    """Number of valid mel frames of a clip of `samples` samples at 16 kHz: ceil(samples / 160), at most 3000."""
    return min(-(-samples // HOP_LENGTH), MAX_MEL_FRAMES)


def encoder_frames(mel: int) -> int:
    """Number of encoder positions for `mel` valid mel frames (the second convolution has stride 2)."""
    return (mel - 1) // 2 + 1


def audio_tokens(mel: int) -> int:
    """Number of audio tokens for `mel` valid mel frames, after pooling by two: 25 tokens a second, 750 for 30 s."""
    return (encoder_frames(mel) - 2) // 2 + 1


MIN_SAMPLES = 2 * HOP_LENGTH + 1
"""The shortest clip that gives one audio token: three mel frames, 321 samples, 20 ms."""

_TEXT_DEFAULTS: dict[str, Any] = {  # transformers' Qwen2Config
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_AUDIO_DEFAULTS: dict[str, Any] = {  # transformers' Qwen2AudioEncoderConfig
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(f"config.json describes a model that cannot be built: {message}")


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Shape of the audio encoder (a Whisper encoder)."""

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    max_source_positions: int = 1500

    def __post_init__(self) -> None:
        heads = self.encoder_attention_heads
        _require(self.d_model % heads == 0, f"d_model {self.d_model} is not divisible by {heads} attention heads")
        _require(
            self.max_source_positions * 2 == MAX_MEL_FRAMES,
            f"max_source_positions must be {MAX_MEL_FRAMES // 2}, got {self.max_source_positions}",
        )


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Shape of the Qwen2 language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        _require(self.hidden_size % heads == 0, f"hidden_size {self.hidden_size} is not divisible by {heads} heads")
        _require(heads % kv_heads == 0, f"{heads} attention heads are not divisible by {kv_heads} key-value heads")
        _require(self.head_dim % 2 == 0, f"head dimension {self.head_dim} is odd, rotary positions need pairs")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class Qwen2AudioConfig:
    """Shape of the whole model, and the id of the placeholder token that audio embeddings replace."""

    audio: AudioConfig
    text: TextConfig
    audio_token_id: int = 151646

    def __post_init__(self) -> None:
        _require(
            0 <= self.audio_token_id < self.text.vocab_size,
            f"audio_token_index {self.audio_token_id} is outside the vocabulary of {self.text.vocab_size}",
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen2AudioConfig:
        """Read the contents of a published `config.json`.

        Keys that do not change the architecture (dropout, initializer_range, token ids, ...) are ignored; settings that
        would change it and that we do not implement (another activation, sliding window, scaled positions, ...) raise
        `CheckpointError`.
        """
        kind = config.get("model_type", "qwen2_audio")
        if kind != "qwen2_audio":
            raise CheckpointError(
                f"this is not a Qwen2-Audio checkpoint: config.json says model_type {kind!r}; "
                "give a folder or hub name of a Qwen2-Audio model"
            )
        audio_in, text_in = _section(config, "audio_config"), _section(config, "text_config")
        _refuse_unsupported(audio_in, text_in)
        rope = _section(text_in, "rope_parameters")
        if rope.get("rope_theta") is not None:
            text_in = {**text_in, "rope_theta": rope["rope_theta"]}
        if text_in.get("num_key_value_heads") is None:
            heads = text_in.get("num_attention_heads", _TEXT_DEFAULTS["num_attention_heads"])
            text_in = {**text_in, "num_key_value_heads": heads}
        audio, text = _merged(audio_in, _AUDIO_DEFAULTS), _merged(text_in, _TEXT_DEFAULTS)
        tokens = {"audio_token_index": config.get("audio_token_index", config.get("audio_token_id"))}
        token = _merged(tokens, {"audio_token_index": 151646})["audio_token_index"]
        return cls(AudioConfig(**audio), TextConfig(**text), audio_token_id=token)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model in the published layout, complete rather than sparse."""
        audio = {key: getattr(self.audio, key) for key in _AUDIO_DEFAULTS}
        text = {key: getattr(self.text, key) for key in _TEXT_DEFAULTS}
        return {
            "architectures": ["Qwen2AudioForConditionalGeneration"],
            "model_type": "qwen2_audio",
            "audio_token_index": self.audio_token_id,
            "ignore_index": -100,
            "vocab_size": self.text.vocab_size,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "audio_config": {
                "model_type": "qwen2_audio_encoder",
                **audio,
                "activation_function": "gelu",
                "scale_embedding": False,
            },
            "text_config": {
                "model_type": "qwen2",
                **text,
                "hidden_act": "silu",
                "use_sliding_window": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": self.text.rope_theta},
            },
        }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    _require(isinstance(section, Mapping), f"{name} must be an object, got {section!r:.60}")
    return section


def _merged(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The given values of the keys of `defaults`, checked against their kind; what is absent or null is the default."""
    merged = {key: default if given.get(key) is None else given[key] for key, default in defaults.items()}
    for key, value in merged.items():
        if isinstance(defaults[key], bool):
            _require(isinstance(value, bool), f"{key} must be true or false, got {value!r}")
            continue
        number, kind = (int | float, "number") if isinstance(defaults[key], float) else (int, "whole number")
        valid = isinstance(value, number) and not isinstance(value, bool) and value > 0
        _require(valid, f"{key} must be a {kind} above 0, got {value!r}")
    return merged


def _refuse_unsupported(audio: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    rope = _section(text, "rope_parameters") or _section(text, "rope_scaling")
    wanted = {
        "audio_config.activation_function": (audio.get("activation_function", "gelu"), "gelu"),
        "audio_config.scale_embedding": (bool(audio.get("scale_embedding", False)), False),
        "text_config.hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text_config.use_sliding_window": (bool(text.get("use_sliding_window", False)), False),
        "text_config.use_mrope": (bool(text.get("use_mrope", False)), False),
        "text_config.rope_parameters.rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for name, (got, supported) in wanted.items():
        _require(got == supported, f"{name} is {got!r}, only {supported!r} is supported")
