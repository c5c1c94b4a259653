"""Reading a checkpoint folder: strict, memory-mapped, straight to device and dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen2_audio.checkpoints.names import canonical
from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHOWN = 5


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint folder, wholly downloaded?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; fetch the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; fetch the checkpoint again")
    return value


def load_config(folder: Path) -> Qwen2AudioConfig:
    """Read `config.json`."""
    return Qwen2AudioConfig.from_hf(read_json(folder / "config.json"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the shards its index names, or the single file."""
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(
                f"{folder / INDEX} has no weight_map from tensors to files; fetch the checkpoint again"
            )
        files = [folder / name for name in sorted(set(shards.values()))]
    else:
        files = [folder / SINGLE]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder} is incomplete: {', '.join(missing) or 'weights'} missing; "
            "download the model again (what is there is kept)"
        )
    return files


def load_model(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Qwen2Audio:
    """Build the model and load its weights.

    Args:
        progress: called with (files read, files) after each weight file.

    Raises:
        CheckpointError: with a report of what is missing, unexpected or of the wrong shape.
    """
    config = load_config(folder)
    with torch.device("meta"):
        model = Qwen2Audio(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    shapes: list[str] = []
    misshapen: set[str] = set()
    files = weight_files(folder)
    for count, file in enumerate(files, 1):
        for source, tensor in _tensors(file, torch.device(device)):
            name = canonical(source)
            if name is None:
                continue
            if name not in wanted:
                unexpected.append(source)
            elif tuple(tensor.shape) != wanted[name]:
                misshapen.add(name)
                shapes.append(f"{source} {list(tensor.shape)} instead of {list(wanted[name])}")
            else:
                found[name] = tensor.to(dtype)
        if progress:
            progress(count, len(files))
    embedding, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    tied = config.text.tie_word_embeddings and embedding in found
    if tied and head in found:  # as transformers does: a head of its own wins over the setting
        tied = torch.equal(found[head], found[embedding])
    if tied:
        found[head] = found[embedding]
    _report(folder, sorted(wanted.keys() - found.keys() - misshapen), unexpected, shapes)
    model.load_state_dict(found, assign=True)
    if tied:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def _tensors(file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                yield name, weights.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or only half downloaded ({error}); delete it and download the model again"
        ) from error


def _report(folder: Path, missing: list[str], unexpected: list[str], shapes: list[str]) -> None:
    lists = {"missing": missing, "unexpected": unexpected, "of the wrong shape": shapes}
    if any(lists.values()):
        parts = [f"{len(names)} {what} ({_some(names)})" for what, names in lists.items() if names]
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: tensors {', '.join(parts)}; "
            "use the files of one and the same model"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
