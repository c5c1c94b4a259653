"""The sound that comes in: kept as long as it may be of use, and the turns heard in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.processing.vad import CHUNK
from qwen2_audio.serving.realtime.config import TurnDetection

Samples = NDArray[np.float32]
_MS = SAMPLE_RATE // 1000
_NOTICED = 3
"""Chunks of speech in a row (0.1 s) that begin a turn: a click is none."""
_LOOSER = 0.15
"""How far below the threshold speech must fall to be over; below `_SILENT` it is over at any threshold."""
_SILENT = 0.01
_TAIL = 320 * _MS
"""Samples of the silence behind a turn that still belong to it."""


class Activity(Protocol):
    """Who tells speech from other sound; `qwen2_audio.processing.vad.VoiceActivity` does."""

    def push(self, samples: Samples) -> NDArray[np.float32]:
        """Hear more, float32 [samples] at 16 kHz; probabilities of speech of the chunks of 512 that are now whole."""

    def reset(self) -> None:
        """Forget what was heard."""


class Heard:
    """Sound in order, in positions counted in samples at 16 kHz since the connection began. Held as 16 bits.

    Attributes:
        start, end: the positions between which it is held.
    """

    def __init__(self, rate: int) -> None:
        self.start = self.end = 0
        self._blocks: deque[NDArray[np.int16]] = deque()
        self.retune(rate)

    def retune(self, rate: int) -> None:
        """From now on sound comes at that rate."""
        self._rate = rate
        self._resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="int16")

    @property
    def samples(self) -> int:
        """How much is held."""
        return self.end - self.start

    def push(self, pcm: NDArray[np.int16], *, last: bool = False) -> Samples:
        """Add sound at the rate of the client; returns it as float32 [samples] at 16 kHz.

        Args:
            last: nothing follows for now: what the resampler holds back comes too.
        """
        if self._resampler is not None:
            pcm = np.asarray(self._resampler.resample_chunk(pcm, last=last), dtype=np.int16)
            if last:
                self.retune(self._rate)
        if len(pcm):
            self._blocks.append(pcm)
            self.end += len(pcm)
        return pcm.astype(np.float32) / np.float32(32768)

    def take(self, start: int, end: int) -> NDArray[np.int16]:
        """The sound between two positions, as far as it is held; what is before the second is held no longer."""
        self.drop(start)
        whole = np.concatenate([*self._blocks, np.zeros(0, np.int16)])
        taken = whole[: max(0, end - self.start)].copy()
        self.drop(end)
        return taken

    def drop(self, before: int) -> None:
        """Hold nothing from before a position."""
        while self._blocks and self.start + len(self._blocks[0]) <= before:
            self.start += len(self._blocks.popleft())
        if self._blocks and self.start < before:
            self._blocks[0] = self._blocks[0][before - self.start :].copy()
            self.start = before

    def clear(self) -> None:
        """Hold nothing."""
        self.drop(self.end)


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a turn begins or ends.

    Attributes:
        position: in samples at 16 kHz since the connection began.
    """

    begins: bool
    position: int


class TurnDetector:
    """Turns in a stream of sound."""

    def __init__(self, activity: Activity, turns: TurnDetection, position: int = 0) -> None:
        """
        Args:
            position: where the sound begins that will be pushed.
        """
        self._activity = activity
        self.turns = turns
        self._at = position
        self._loud = 0
        self._last_speech = position
        self.speaking = False

    def push(self, samples: Samples) -> list[Edge]:
        """Hear more, float32 [samples] at 16 kHz; the edges that are now certain, in order."""
        edges: list[Edge] = []
        for probability in self._activity.push(samples).tolist():
            self._at += CHUNK
            edge = self._step(probability)
            if edge is not None:
                edges.append(edge)
        return edges

    def _step(self, probability: float) -> Edge | None:
        """One more chunk, which ends at `_at`."""
        if probability >= self.turns.threshold:
            self._loud += 1
            self._last_speech = self._at
        elif probability < max(self.turns.threshold - _LOOSER, _SILENT):
            self._loud = 0
        else:
            self._last_speech = self._at
        if not self.speaking:
            if self._loud < _NOTICED:
                return None
            self.speaking = True
            return Edge(True, max(0, self._at - _NOTICED * CHUNK - self.turns.prefix_padding_ms * _MS))
        silence = self.turns.silence_duration_ms * _MS
        if self._at - self._last_speech < silence:
            return None
        return self.end(min(self._at, self._last_speech + min(silence, _TAIL)))

    def end(self, position: int) -> Edge:
        """The turn ends there, whatever is heard."""
        self.speaking, self._loud = False, 0
        return Edge(False, position)
