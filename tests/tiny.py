"""A tiny random Qwen2-Audio: its configuration, its weights and a checkpoint folder as the published ones look.

`transformers` loads the folder too. Tests use these functions, or the fixtures of `conftest.py` that cache their results.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen2_audio.checkpoints.save import save
from qwen2_audio.config import SAMPLE_RATE, AudioConfig, Qwen2AudioConfig, TextConfig
from qwen2_audio.model.qwen2_audio import Qwen2Audio

SENTENCES = (
    "You are a helpful assistant. Audio 1: What's that sound? It is the sound of glass shattering.",
    "Detect the language and recognize the speech: Recognize the emotion with keywords in English: Generate the caption",
    "the cat sat on the mat and the dog barked at the man who was walking in the rain with the umbrella",
    "system user assistant Audio 2: Audio 3: hello hello world, what is this? 你好 世界 你好",
)
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|en|>", "<|zh|>")
BASE_VOCAB = 320
"""Bytes and merges; the special tokens follow."""
VOCAB = 384
"""Rows of the embedding; more than there are tokens, as in the published checkpoints."""
END_OF_TEXT_ID, IM_START_ID, IM_END_ID, AUDIO_ID = range(BASE_VOCAB, BASE_VOCAB + 4)

# as in Qwen2
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_config(seed: int = 0, mel_bins: int = 128, gqa: bool = True, *, tied: bool = False) -> Qwen2AudioConfig:
    """A few layers of hidden size 64; the seed varies their numbers a little."""
    audio = AudioConfig(
        num_mel_bins=mel_bins,
        d_model=32,
        encoder_layers=1 + seed % 2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
    )
    text = TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2 + seed % 2,
        num_attention_heads=4,
        num_key_value_heads=2 if gqa else 4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
    )
    return Qwen2AudioConfig(audio, text, audio_token_id=AUDIO_ID)


def tiny_model(config: Qwen2AudioConfig | None = None, seed: int = 0) -> Qwen2Audio:
    """Random weights, large enough that every part of the model moves the logits."""
    torch_seed = torch.Generator().manual_seed(seed)
    model = Qwen2Audio(config or tiny_config(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm or parameter.ndim == 1 else 0.15, generator=torch_seed)
    return model.requires_grad_(False).eval()


def short_context(config: Qwen2AudioConfig, tokens: int) -> Qwen2AudioConfig:
    """The same model with a context of `tokens`."""
    return replace(config, text=replace(config.text, max_position_embeddings=tokens))


def tiny_folder(
    folder: Path, model: Qwen2Audio | None = None, *, seed: int = 0, mel_bins: int = 128, gqa: bool = True
) -> Path:
    """Save a checkpoint folder at `folder`: the model (a random one by default) and all side files; returns `folder`."""
    side = write_side_files(folder.with_name(folder.name + "-side"), mel_bins)
    save(model or tiny_model(tiny_config(seed, mel_bins, gqa), seed), folder, source=side)
    return folder


def write_side_files(folder: Path, mel_bins: int = 128) -> Path:
    """Tokenizer, features and generation settings, laid out as in the published folders."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    listed = {
        str(BASE_VOCAB + i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in enumerate(CHAT_TOKENS + AUDIO_TOKENS)
    }
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": listed,
            "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "padding_side": "left",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "Qwen2AudioProcessor",
            "feature_size": mel_bins,
            "sampling_rate": SAMPLE_RATE,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
        },
    )
    _write(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.5,
            "top_k": 20,
            "repetition_penalty": 1.1,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": [END_OF_TEXT_ID, IM_END_ID],
            "pad_token_id": END_OF_TEXT_ID,
        },
    )
    return folder


def sound(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A tone with noise and a slow swell, float32 [samples]."""
    return sound_of(round(seconds * rate), seed, rate)


def sound_of(samples: int, seed: int = 0, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """As `sound`, by the number of samples."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    tone = np.sin(2 * np.pi * rng.uniform(150, 1500) * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t))
    return (0.3 * tone + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def qwen2_tokenizer(bpe: models.BPE) -> Tokenizer:
    """A byte-level tokenizer that splits text as Qwen2's does."""
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    tokenizer = qwen2_tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == BASE_VOCAB
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    return str(tokenizer.to_str())


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
