"""Checkpoints with the shape of published models and random weights, made on the spot: speed does not ask what is in them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen2_audio.api import Assistant, prepare_network, read_defaults
from qwen2_audio.checkpoints.load import INDEX, load_config, read_json
from qwen2_audio.checkpoints.save import SIDE_FILES, write_json
from qwen2_audio.config import AudioConfig, Qwen2AudioConfig, TextConfig
from qwen2_audio.errors import UsageError
from qwen2_audio.generation.engine import Engine
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import load_processor
from qwen2_audio.runtime import Runtime

SHARD_BYTES = 2 * 10**9
_RANDOM = 1 << 22
_NORMS = ("norm.weight", "layer_norm.weight", "layernorm.weight")
_AUDIO = {
    "7b": AudioConfig(128, 1280, 32, 20, 5120),
    "0.5b": AudioConfig(80, 768, 12, 12, 3072),
    "mini": AudioConfig(80, 512, 6, 8, 2048),
}
_TEXT = {
    "7b": TextConfig(156032, 4096, 11008, 32, 32, 32, 8192, 1e-5, 10000.0, False),
    "0.5b": TextConfig(151936, 896, 4864, 24, 14, 2, 8192, 1e-6, 1000000.0, True),
    "mini": TextConfig(49280, 576, 1536, 30, 9, 3, 8192, 1e-5, 10000.0, True),
}
GEOMETRIES = tuple(_TEXT)
"""7b: the published model. 0.5b: Qwen2-0.5B with the encoder of Whisper small. mini: as the model of that name."""


def geometry(name: str, audio_token_id: int) -> Qwen2AudioConfig:
    """The shape of a published model.

    Raises:
        UsageError: no such shape.
    """
    if name not in GEOMETRIES:
        raise UsageError(f"unknown geometry {name!r}; use one of {', '.join(GEOMETRIES)}")
    return Qwen2AudioConfig(_AUDIO[name], _TEXT[name], audio_token_id)


def write_random(config: Qwen2AudioConfig, folder: Path, side: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint folder with random weights, a shard at a time; see `write_side_files`."""
    write_side_files(config, folder, side, dtype)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(config, dtype)):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")


def write_side_files(config: Qwen2AudioConfig, folder: Path, side: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint folder without its weights.

    Args:
        side: a folder whose tokenizer is taken; its placeholder token is the config's.
    """
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_hf() | {"dtype": str(dtype).removeprefix("torch.")})
    for name in SIDE_FILES:
        if (side / name).exists():
            shutil.copyfile(side / name, folder / name)
    features = read_json(side / "preprocessor_config.json") | {"feature_size": config.audio.num_mel_bins}
    write_json(folder / "preprocessor_config.json", features)


def has_weights(folder: Path) -> bool:
    """Whether a folder is more than side files."""
    return any(folder.glob("*.safetensors"))


def load_random(folder: Path, runtime: Runtime) -> Assistant:
    """A model with random weights, made where it is to be, for a folder of side files."""
    config = load_config(folder)
    processor = load_processor(folder, config)
    network = prepare_network(random_model(config, runtime.device, runtime.dtype), runtime)
    defaults = read_defaults(folder, processor)
    return Assistant(Engine(network, processor.tokenizer, defaults.end_ids), processor, defaults, folder)


@torch.no_grad()
def random_model(config: Qwen2AudioConfig, device: torch.device, dtype: torch.dtype) -> Qwen2Audio:
    """A model with random weights, made where it is to be."""
    with torch.device("meta"):
        model = Qwen2Audio(config)
    model = model.to(dtype).to_empty(device=device)
    if config.text.tie_word_embeddings:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    for name, weight in model.state_dict().items():
        if name.endswith(_NORMS):
            weight.fill_(1)
        else:
            weight.normal_(std=0.02)
    return model.requires_grad_(False).eval()


def audio_token_of(folder: Path) -> int:
    """The placeholder token of a checkpoint folder."""
    return load_config(folder).audio_token_id


def _shards(config: Qwen2AudioConfig, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen2Audio(config).state_dict().items()}
    some = torch.randn(_RANDOM, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    shard: dict[str, Tensor] = {}
    size = 0
    for name, shape in shapes.items():
        count = shape.numel()
        if name.endswith(_NORMS):
            tensor = torch.ones(shape, dtype=dtype)
        else:  # the same numbers over and over, as drawing them takes longer than writing them
            tensor = some.repeat(math.ceil(count / _RANDOM))[:count].reshape(shape).contiguous()
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
