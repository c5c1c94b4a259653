"""A small training run on a tiny model, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile

from qwen2_audio.training.config import GroupConfig, TrainConfig
from qwen2_audio.training.tracking import LOG
from tests.tiny import sound

TEXTS = ("the cat", "hello world", "the dog barked", "the man")


def silent(_: str) -> None:
    """Says nothing."""


def write_rows(folder: Path, name: str = "data.jsonl") -> Path:
    """Eight rows: four recordings, each in a conversation and in the base model's form."""
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(TEXTS):
        soundfile.write(folder / f"{i}.wav", sound(0.3 + 0.2 * i, seed=i), 16_000)
        content = [{"type": "audio", "audio": f"{i}.wav"}, {"type": "text", "text": "What is said?"}]
        rows.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": text}]})
        rows.append({"audio": f"{i}.wav", "prompt": "recognize the speech:", "gt": text})
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def small_plan(folder: Path, model: Path) -> TrainConfig:
    """Twelve steps of a LoRA and the projector, in float32, in the order of the rows."""
    return TrainConfig(
        model=str(model),
        data=str(write_rows(folder)),
        out=str(folder / "run"),
        batch_tokens=150,
        steps=12,
        save_every=5,
        precision="float32",
        projector=GroupConfig("full", 1e-2),
        language_model=GroupConfig("lora", 1e-2, rank=4, alpha=8.0),
        shuffle=False,
        trackers=(),
    )


def log_of(plan: TrainConfig) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (Path(plan.out) / LOG).read_text().splitlines()]


def losses(plan: TrainConfig) -> list[float]:
    """Of every step of a run."""
    return [row["loss"] for row in log_of(plan)]
