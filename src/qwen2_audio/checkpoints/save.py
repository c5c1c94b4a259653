"""Writing a checkpoint folder in the published layout, which `transformers` loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qwen2_audio.checkpoints.load import INDEX, SINGLE
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio

SHARD_BYTES = 5 * 10**9
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def save(model: Qwen2Audio, folder: Path, *, source: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model` into the new folder `folder`.

    Everything is written beside it first and then renamed, so that no partial folder ever has the final name.

    Args:
        source: the folder whose tokenizer and other side files are copied along.
        shard_bytes: the largest weight file.

    Raises:
        CheckpointError: the folder exists, or the disk is full or not writable.
    """
    with new_folder(folder) as part:
        config = model.config.to_hf() | {"dtype": str(model.dtype).removeprefix("torch.")}
        write_json(part / "config.json", config)
        for name in SIDE_FILES:
            if source is not None and (source / name).exists():
                shutil.copyfile(source / name, part / name)
        _write_weights(model, part, shard_bytes)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `folder` when the block ends well and is removed when it does not.

    Raises:
        CheckpointError: `folder` exists already, or the disk is full or not writable.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; choose a new folder or remove it")
    if folder.resolve() == Path.cwd():
        raise CheckpointError(f"{folder} is the current folder; choose a new one in it")
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {folder}: {reason}; free space or choose another place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file as people like to read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(model: Qwen2Audio, folder: Path, shard_bytes: int) -> None:
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.text.tie_word_embeddings:  # transformers does not tie this model's head: it wants its own copy
        state["language_model.lm_head.weight"] = state["language_model.lm_head.weight"].clone()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in state.values())
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
