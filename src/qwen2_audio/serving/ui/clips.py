"""Recordings that were shown to the model: kept in memory only, reached by an unguessable name, gone with their session."""

from __future__ import annotations

import io
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.processing.windows import cut_windows
from qwen2_audio.serving.ui.picture import picture

WAITING_SECONDS = 120.0
_MOST_WAITING = 64


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording as the model hears it.

    Attributes:
        samples: float32 [samples] at 16 kHz.
        name: what to call it on the page.
        token: its name in addresses; nobody can guess it.
        image: its picture, a PNG.
        remark: what is to be said of it: that some of it is damaged, for instance.
        cuts: where a part that the model hears ends and the next begins, as shares of the whole.
    """

    samples: NDArray[np.float32]
    name: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    image: bytes = b""
    cuts: tuple[float, ...] = ()
    remark: str = ""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples.shape[0] / SAMPLE_RATE

    @property
    def windows(self) -> int:
        """How many parts of at most 30 s the model hears it as."""
        return len(self.cuts) + 1

    @property
    def part(self) -> AudioPart:
        """As a part of a message."""
        return AudioPart((self.samples, SAMPLE_RATE))

    def wav(self) -> bytes:
        """As a file: 16-bit PCM, one channel, 16 kHz."""
        return self._file("WAV")

    def flac(self) -> bytes:
        """As a small file without loss (of the 16 bits)."""
        return self._file("FLAC")

    def _file(self, container: str) -> bytes:
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.samples, SAMPLE_RATE, format=container, subtype="PCM_16")
        return file.getvalue()


def new_clip(part: AudioPart, name: str, told: Sequence[str] = ()) -> Clip:
    """A clip with its picture, of a decoded recording. Takes some ten milliseconds: call it off the event loop."""
    if not isinstance(part.source, tuple) or not isinstance(part.source[0], np.ndarray):
        raise AudioError(f"{name} has not been decoded; give (samples, 16000)")
    samples = part.source[0].astype(np.float32, copy=False)
    ends = accumulate(piece.shape[0] for piece in cut_windows(samples))
    *cuts, _whole = (end / samples.shape[0] for end in ends)
    return Clip(samples, name, image=picture(samples, tuple(cuts)), cuts=tuple(cuts), remark="; ".join(told))


class Clips:
    """All clips that some session still holds, by token; a fresh one is held for two minutes until a session claims it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, Clip] = WeakValueDictionary()
        self._waiting: OrderedDict[str, tuple[Clip, float]] = OrderedDict()

    def add(self, clip: Clip) -> Clip:
        """Make it reachable by its token as long as somebody holds it."""
        self._known[clip.token] = clip
        return clip

    def wait(self, clip: Clip) -> Clip:
        """Like `add`, and hold it until it is claimed."""
        self.sweep()
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popitem(last=False)
        self._waiting[clip.token] = (clip, time.monotonic() + WAITING_SECONDS)
        return self.add(clip)

    def sweep(self) -> None:
        """Let go of those that nobody has claimed in time."""
        now = time.monotonic()
        for token, (_, deadline) in list(self._waiting.items()):
            if deadline <= now:
                del self._waiting[token]

    def claim(self, token: str) -> Clip:
        """Take over a clip that waits; whoever calls holds it from now on."""
        found = self._waiting.pop(token, None)
        if found is None:
            raise AudioError("this recording is no longer here; record it again")
        return found[0]

    def get(self, token: str) -> Clip | None:
        """The clip of a token, if somebody still holds it."""
        return self._known.get(token)
