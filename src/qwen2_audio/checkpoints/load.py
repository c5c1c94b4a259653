"""Reading a checkpoint folder: strict, memory-mapped, straight to device and dtype."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen2_audio.checkpoints.names import canonical
from qwen2_audio.checkpoints.quantize import FileEmbedding, Int8Rows, int8_weights, put_into_int8, to_int8, workers
from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
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
    int8: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Qwen2Audio:
    """Build the model and load its weights.

    Args:
        int8: round the linear layers to int8 as they are read, on the CPU in float32; little more than the result is ever in
            memory, and the embeddings stay mapped, in the dtype of the file.
        progress: called with (files read, files) after each weight file.

    Raises:
        CheckpointError: with a report of what is missing, unexpected or of the wrong shape.
    """
    config = load_config(folder)
    with torch.device("meta"):
        model = Qwen2Audio(config)
    found = _Found({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    rounded = frozenset(int8_weights(model)) if int8 else frozenset()
    files = weight_files(folder)
    _read_ahead(files[:1])
    with workers() as pool:
        for count, file in enumerate(files, 1):
            _read_ahead(files[count : count + 1])
            waiting: dict[str, Future[Int8Rows]] = {}
            for source, tensor in _tensors(file, torch.device(device), apart=int8):
                name = found.place_of(source, tensor)
                if name is None:
                    continue
                if name in rounded:
                    waiting[name] = pool.submit(to_int8, tensor)
                else:
                    found.plain[name] = tensor if int8 and name == EMBEDDING else tensor.to(dtype)
            found.int8 |= {name: task.result() for name, task in waiting.items()}
            if progress:
                progress(count, len(files))
    tied = config.text.tie_word_embeddings and EMBEDDING in found.plain
    if tied and HEAD in found.plain:  # as transformers does: a head of its own wins over the setting
        tied = torch.equal(found.plain[HEAD], found.plain[EMBEDDING])
    if tied and int8:
        found.int8.setdefault(HEAD, to_int8(found.plain[EMBEDDING]))
    elif tied:
        found.plain[HEAD] = found.plain[EMBEDDING]
    found.report(folder)
    model.load_state_dict(found.plain, assign=True, strict=not int8)
    if int8:
        put_into_int8(model, found.int8)
        model.language_model.model.embed_tokens = FileEmbedding.of(found.plain[EMBEDDING])
    elif tied:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


@dataclass(slots=True)
class _Found:
    """What the files hold so far, measured against `wanted`: the shapes of the model's tensors."""

    wanted: dict[str, tuple[int, ...]]
    plain: dict[str, Tensor] = field(default_factory=dict)
    int8: dict[str, Int8Rows] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, str] = field(default_factory=dict)

    def place_of(self, source: str, tensor: Tensor) -> str | None:
        """The model's name for a file's tensor; None when it has no place there."""
        name = canonical(source)
        if name is None:
            return None
        if name not in self.wanted:
            self.unexpected.append(source)
            return None
        if tuple(tensor.shape) != self.wanted[name]:
            self.misshapen[name] = f"{source} {list(tensor.shape)} instead of {list(self.wanted[name])}"
            return None
        return name

    def report(self, folder: Path) -> None:
        """Raise a CheckpointError unless everything is there."""
        missing = sorted(self.wanted.keys() - self.plain.keys() - self.int8.keys() - self.misshapen.keys())
        _report(folder, missing, self.unexpected, list(self.misshapen.values()))


def _read_ahead(files: Sequence[Path]) -> None:
    """Let the system read files while others are worked on: mapped memory alone is read in small pieces, each waited for."""

    def ask(file: Path) -> None:
        with suppress(OSError), file.open("rb") as opened:  # whoever reads it next says what is wrong
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
        for file in files:
            Thread(target=ask, args=(file,), daemon=True).start()


def _tensors(file: Path, device: torch.device, *, apart: bool) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file, mapped into memory together; or `apart`, so that each gives its memory back by itself."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                if apart:
                    with safe_open(file, framework="pt", device=str(device)) as alone:
                        yield name, alone.get_tensor(name)
                else:
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
