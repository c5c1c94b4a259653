"""What the front process and the engine's process say to each other. Plain values: no torch on this side of the pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Step


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What the engine's process loads.

    Attributes:
        folder: the checkpoint.
        name: what the model is called in `EngineRequest.model`.
        adapters: (name, path) of what was trained on it; each becomes a model of its own.
        device, dtype, quantize: as in `load`.
        cache_tokens: positions of the key-value cache, of all models together.
        max_running: answers of a model that are worked on at a time.
    """

    folder: str
    name: str
    adapters: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    cache_tokens: int = 32768
    max_running: int = 32


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """An answer that is wanted.

    Attributes:
        ids: the prompt, a placeholder for every audio token.
        mels, frames: features of the recordings, float32 [mel_bins, frames + tail] each, and their valid frames.
    """

    model: str
    ids: list[int]
    mels: tuple[NDArray[np.float32], ...]
    frames: tuple[int, ...]
    options: GenerationOptions

    @property
    def nbytes(self) -> int:
        """Size of the features."""
        return sum(mel.nbytes for mel in self.mels)


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer this; the steps carry the ticket, which no other request of this process has, as their index."""

    ticket: int
    request: EngineRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody waits for this answer any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models are there; requests are answered from now on."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The process ends because a model could not be loaded."""

    error: Qwen2AudioError


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that makes no sense."""

    ticket: int
    error: Qwen2AudioError


@dataclass(frozen=True, slots=True)
class Progress:
    """What one scheduling step brought, for all requests together, and how full the engine is after it.

    Attributes:
        cache_usage: of the key-value cache, 0 to 1; of the fullest where several models are served.
    """

    steps: tuple[Step, ...]
    running: int
    waiting: int
    cache_usage: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The process ends because of an error of its own.

    Attributes:
        kind: the error's class.
        trace: where it happened; without the error's message, which may hold what a user said.
    """

    kind: str
    trace: str


Order: TypeAlias = Submit | Abort | Stop
Report: TypeAlias = Loaded | LoadFailed | Refused | Progress | Broken
