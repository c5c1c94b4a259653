"""Where a run's numbers go: log.jsonl and the terminal always; TensorBoard, wandb and swanlab when asked for and installed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

LOG = "log.jsonl"
_BETWEEN_LINES = 5.0
"""Seconds between two lines on the terminal."""


class Tracker(Protocol):
    """Something that draws curves."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def close(self) -> None:
        """The run has ended."""


class TensorBoard:
    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step)
        self._writer.add_text("config", json.dumps(settings, indent=2))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Hosted:
    """wandb and swanlab, which share their calls."""

    def __init__(self, library: Any, out: Path, settings: Mapping[str, Any]) -> None:
        self._library = library
        self._run = library.init(project="qwen2-audio", name=out.name, config=dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        self._library.finish()


def open_trackers(
    names: Sequence[str], out: Path, settings: Mapping[str, Any], say: Callable[[str], None], step: int
) -> list[Tracker]:
    """The trackers of these names; one that is not installed is said and left out. `step`: the first that will be logged."""
    found: list[Tracker] = []
    for name in names:
        try:
            if name == "tensorboard":
                found.append(TensorBoard(out, settings, step))
            else:
                import importlib

                found.append(Hosted(importlib.import_module(name), out, settings))
        except ImportError:
            say(f"{name} is not installed, so the run is not tracked there: pip install {name}")
        except Exception as error:  # a hosted tracker without a key or a network must not end a run
            say(f"the run is not tracked by {name}: {error}")
    return found


class Tracking:
    """The numbers of one run. Only the first process has one that does anything."""

    def __init__(self, out: Path, trackers: Sequence[Tracker], say: Callable[[str], None], *, active: bool) -> None:
        self._path, self._trackers, self._say, self._active = out / LOG, trackers, say, active
        self._shown = 0.0

    def step(self, row: Mapping[str, Any], progress: float, left: float) -> None:
        """One optimizer step.

        Args:
            row: "step", losses, "tokens", "audio_seconds" and "took" (seconds) of this step, and what else is to be kept.
            progress: share of the run that is done.
            left: seconds that the run will still take.
        """
        if not self._active:
            return
        speed = {
            "tokens_per_second": round(row["tokens"] / max(row["took"], 1e-9), 1),
            "audio_seconds_per_second": round(row["audio_seconds"] / max(row["took"], 1e-9), 2),
            "memory_gb": round(memory_in_use() / 1e9, 2),
        }
        self._write({**row, **speed})
        now = time.monotonic()
        if now - self._shown >= _BETWEEN_LINES or progress >= 1:
            self._shown = now
            hidden = {"step", "took", "tokens", "audio_seconds", "targets", "seconds"}
            losses = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in hidden)
            self._say(
                f"step {row['step']} ({progress:.1%}): {losses}; {speed['tokens_per_second']:.0f} tokens/s, "
                f"{speed['audio_seconds_per_second']:.1f} s of audio/s, {speed['memory_gb']:.2f} GB, {_clock(left)} left"
            )

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """What a measurement found; its names begin with "eval_"."""
        if self._active:
            self._write(row)
            self._say(
                f"step {row['step']}: " + ", ".join(f"{n} {v:.4g}" for n, v in row.items() if n.startswith("eval_"))
            )

    def _write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        values = {name: float(value) for name, value in row.items() if name != "step"}
        for tracker in self._trackers:
            tracker.log(values, row["step"])

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run made after its last checkpoint: they are made again."""
        if not self._active or not self._path.exists():
            return
        lines = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        part = self._path.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        part.replace(self._path)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # half a line, from a process that was killed
        return float("inf")


def memory_in_use() -> int:
    """Most bytes that this process had in use: of the GPU where there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
