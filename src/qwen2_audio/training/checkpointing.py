"""A run's folder: checkpoints that are whole or not there, the latest few of them, the best, and the result.

OUT/checkpoints/step-00000100/   everything needed to go on: state.pt, weights.pt, the optimizer's own files
OUT/best.safetensors             what was trained, when the evaluation was best
OUT/trained.safetensors          what was trained, at the end
OUT/adapter/                     the same for peft, where only LoRA (and the projector) learnt
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qwen2_audio.checkpoints.sample import SAMPLE
from qwen2_audio.errors import UsageError
from qwen2_audio.training.config import GROUPS, GroupConfig, TrainConfig
from qwen2_audio.training.plot import CURVES

RESULT, BEST, ADAPTER = "trained.safetensors", "best.safetensors", "adapter"
STATE, WEIGHTS = "state.pt", "weights.pt"
MAY_CHANGE = frozenset(
    "steps minutes schedule save_every keep recompute workers device out resume trackers evaluation feature_cache".split()
)
"""What a resumed run may set anew (and learning rates); anything else would make it another run."""
_PART = ".part"


class Checkpoints:
    """The checkpoints in a run's folder. `folder` need not exist yet."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def finished(self) -> list[Path]:
        """From the oldest to the latest."""
        return sorted(self.folder.glob("step-*[0-9]"))

    def check_place(self, config: TrainConfig) -> None:
        """Raise `UsageError` where the run's folder holds something else than this run."""
        out, holds_run = self.folder.parent, bool(self.finished())
        if out.exists() and not out.is_dir():
            raise UsageError(f"out={out} is a file; give a folder")
        if not out.is_dir() or not any(out.iterdir()):
            return
        if holds_run and config.resume == "never":
            raise UsageError(f"{out} holds a run already; give another out, or resume=auto to go on with it")
        cache = os.path.relpath(Path(config.feature_cache or "checkpoints").resolve(), out.resolve()).split(os.sep)[0]
        own = ("checkpoints", cache, "tensorboard", "log.", "reference.", "evaluation.", CURVES, RESULT, BEST, ADAPTER)
        strange = sorted(path.name for path in out.iterdir() if not path.name.startswith(own))
        if not holds_run and (out / RESULT).exists():
            raise UsageError(f"{out} holds a finished run without its checkpoints; give another out, or remove it")
        if strange and not holds_run:
            raise UsageError(f"{out} is not empty and holds no run (there is {strange[0]}); give another out")

    def part(self, step: int) -> Path:
        """Where a checkpoint is written before it counts."""
        return self.folder / f"step-{step:08d}{_PART}"

    def begin(self, step: int) -> None:
        """An empty folder to write into."""
        for left_over in self.folder.glob(f"step-*{_PART}"):  # of processes that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        self.part(step).mkdir(parents=True)

    def finish(self, step: int) -> None:
        """Make what was written count, and remove the oldest beyond those kept."""
        final = self.part(step).with_suffix("")
        shutil.rmtree(final, ignore_errors=True)
        self.part(step).rename(final)
        for old in self.finished()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path, config: TrainConfig, sample: str) -> dict[str, Any]:
    """The state in a checkpoint, checked to be of this very run.

    Raises:
        UsageError: it cannot be read, or was written with another configuration, or of another model (see `sample_of`).
    """
    with reading(folder):
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    now, usual = plain(asdict(config)), plain(asdict(GroupConfig()))
    for key, value in state["config"].items():
        if key in GROUPS:  # a version before this one knew fewer keys
            value = state["config"][key] = {**usual, **value}
        if key not in MAY_CHANGE and _without_rates(now.get(key)) != _without_rates(value):
            raise UsageError(
                f"the run in {config.out} was started with {key}={value!r}, not {now.get(key)!r}; "
                "go on with that, or give another out"
            )
    if state.get("sample", sample) != sample:
        raise UsageError(
            f"the run in {config.out} was started on another model than what {config.model} is now; "
            "give that one, or another out"
        )
    start = content_of(config.start)
    if state.get("start", start) != start:
        raise UsageError(
            f"the run in {config.out} was started from another {config.start} than is there now; put that back, or give "
            "another out"
        )
    return state


def content_of(file: str) -> str:
    """What tells a file from others of its name; "" for none."""
    if not file:
        return ""
    with reading(Path(file)), Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _without_rates(value: Any) -> Any:
    """What must be the same: also the order of mappings, since rows are drawn from data sets in their order."""
    return [(k, v) for k, v in value.items() if k != "learning_rate"] if isinstance(value, dict) else value


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, all the way down."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint does to torch into one line."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):  # no fault of the checkpoint
        raise
    except Exception as error:  # of many kinds
        raise UsageError(
            f"cannot read the checkpoint {folder}, it is damaged; delete it to go on from the one before"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full or failing disk does to torch and safetensors into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot write {path}: {reason}; free space, or give a place that can be written to, and run again"
        ) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        raise UsageError(f"cannot write {path}: is the disk full? Free space, and run again") from error


def save_trained(path: Path, tensors: dict[str, Tensor], sample: str) -> None:
    """Write what was trained, beside and then renamed, as `checkpoints.merge.read_trained` reads it.

    Args:
        sample: of the model that it was trained on, see `checkpoints.sample.sample_of`.
    """
    part = path.with_name(path.name + _PART)
    with writing(path):
        save_file(tensors, part, metadata={"lora_scale": "1.0", SAMPLE: sample})
        part.replace(path)
