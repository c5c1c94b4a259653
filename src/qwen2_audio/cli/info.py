"""`qwen2-audio info`: versions, this machine, and the sizes of a model."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import find
from qwen2_audio.cli.terminal import patience
from qwen2_audio.errors import DownloadError, UsageError


def info(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also tell the sizes of this model, from its config.json.")
    ] = None,
    revision: opt.Revision = None,
    as_json: opt.Json = False,
) -> None:
    """Tell versions, device, cores and which models are here. Loads no model."""
    if revision is not None and model is None:
        raise UsageError("--revision is of a model; give --model, too")
    with patience("starting"):
        facts = _machine()
    if model is not None:
        facts["model"] = {"name": model, **_sizes(_folder(model, revision))}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in _rows(facts):
        shown = ", ".join(value) or "none yet (qwen2-audio download)" if isinstance(value, list) else value
        print(f"{name:<20} {shown:,}" if isinstance(shown, int) else f"{name:<20} {shown}")


def _rows(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    sizes = facts.pop("model", {})
    return [*facts.items(), *(("model" if name == "name" else name, value) for name, value in sizes.items())]


def _machine() -> dict[str, Any]:
    import torch

    import qwen2_audio
    from qwen2_audio.checkpoints.hub import cache_folder, models_here
    from qwen2_audio.runtime import choose_runtime

    runtime = choose_runtime()
    return {
        "qwen2-audio": qwen2_audio.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(runtime.device),
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cache": str(cache_folder()),
        "models": models_here(),
    }


def _folder(model: str, revision: str | None) -> Path:
    try:
        return find(model, revision=revision, offline=True)
    except DownloadError:
        raise DownloadError(f"{model} is not on this machine; fetch it with: qwen2-audio download {model}") from None


def _sizes(folder: Path) -> dict[str, Any]:
    import torch

    from qwen2_audio.checkpoints.load import load_config
    from qwen2_audio.model.qwen2_audio import Qwen2Audio

    config = load_config(folder)
    with torch.device("meta"):  # shapes without memory
        network = Qwen2Audio(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "folder": str(folder),
        "parameters": parameters,
        "encoder parameters": sum(parameter.numel() for parameter in network.audio_tower.parameters()),
        "layers": config.text.num_hidden_layers,
        "encoder layers": config.audio.encoder_layers,
        "hidden size": config.text.hidden_size,
        "vocabulary": config.text.vocab_size,
        "context": config.text.max_position_embeddings,
        "mel bins": config.audio.num_mel_bins,
    }
