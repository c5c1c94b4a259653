"""Long recordings to windows that a model can hear: cut where nobody speaks, silence left out, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.processing.vad import CHUNK, VoiceActivity
from qwen2_audio.processing.windows import check_length, split_at_pauses

SPEECH, SILENCE = 0.5, 0.35
"""Speech begins at the first probability and lasts until one is below the second."""
PERHAPS = 0.15
"""A recording that fits into one window is heard whole where any probability is above this: single words may stay low."""
_CHUNKS_A_SECOND = SAMPLE_RATE / CHUNK
SHORTEST_PAUSE, SHORTEST_SPEECH = 6, 3
"""Chunks: what is shorter belongs to the speech around it (0.2 s), or to the silence (0.1 s)."""
PADDING = 16
"""Chunks of silence kept on each side (0.5 s): with less, mini loses the first and last words of a window."""
LONG_PAUSE, VERY_LONG_PAUSE, ALONE = 47, 156, 31
"""Chunks of a pause that ends a window of at least `ALONE` (1.5 s, 1 s), and of one that ends any (5 s)."""
_LOOK_AHEAD = VERY_LONG_PAUSE + PADDING

Samples = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a recording with speech in it.

    Attributes:
        start: where it begins, in samples at 16 kHz from the beginning of the recording.
        samples: float32 [samples].
        spoken: where in the recording speech begins and ends in it, in samples.
        probability: mean probability of speech between the two.
        joined: it begins where the window before ends, amid speech.
        stretches: where in the recording somebody speaks, in samples, in order; (): all the time that is `spoken`.
    """

    start: int
    samples: Samples
    spoken: tuple[int, int]
    probability: float
    joined: bool = False
    stretches: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """Where it ends, in samples."""
        return self.start + len(self.samples)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE

    def halves(self) -> list[Window]:
        """The same in consecutive windows, mostly two, cut where it is quietest; pieces in which nobody speaks are left out."""
        stretches = self.stretches or (self.spoken,)
        found: list[Window] = []
        start = self.start
        for piece in split_at_pauses(self.samples, 0.7 * self.seconds):
            end = start + len(piece)
            inside = tuple((max(a, start), min(b, end)) for a, b in stretches if a < end and b > start)
            if inside:
                amid = any(a < start < b for a, b in stretches)
                joined = self.joined if start == self.start else amid
                found.append(Window(start, piece, (inside[0][0], inside[-1][1]), self.probability, joined, inside))
            start = end
        return found


def speech_windows(blocks: Iterable[Samples], longest: float) -> Iterator[Window]:
    """Windows of at most `longest` seconds of a stream of blocks, float32 [samples] at 16 kHz, as soon as they are certain.

    What fits into one window is one, whole, unless nobody speaks in it. Else all speech lies in exactly one window. A window
    ends at the longest pause of its second half; where there is none, at the last of its first; where nobody pauses, at its
    quietest place. Held in memory is little more than one window and one block.

    Raises:
        AudioError: at the end: it was too short to be heard.
    """
    cutter = WindowCutter(longest)
    for block in blocks:
        yield from cutter.push(block)
    yield from cutter.finish()


def speech_mask(probabilities: NDArray[np.float32], inside: bool = False, *, over: bool = True) -> Mask:
    """Which chunks are speech.

    Args:
        probabilities: float32 [chunks].
        inside: the chunk before the first was speech.
        over: nothing follows; else speech that has just begun counts whatever its length.
    """
    mask = np.empty(len(probabilities), np.bool_)
    for index, probability in enumerate(probabilities.tolist()):
        inside = probability >= (SILENCE if inside else SPEECH)
        mask[index] = inside
    for start, end in runs(~mask):
        if start > 0 and end < len(mask) and end - start < SHORTEST_PAUSE:
            mask[start:end] = True
    for start, end in runs(mask):
        if end - start < SHORTEST_SPEECH and start > 0 and (over or end < len(mask)):
            mask[start:end] = False
    return mask


def runs(mask: Mask) -> list[tuple[int, int]]:
    """The stretches [start, end) in which a mask is set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def choose_end(mask: Mask, energies: NDArray[np.float64], first: int, most: int) -> tuple[int, bool]:
    """Where the window that begins at `first` ends, in chunks, and whether that is amid speech.

    Args:
        mask: speech or not, [chunks], of all that is known.
        energies: of the chunks, [chunks].
        most: the longest window.
    """
    limit, padding = first + most, _padding(most)
    spoken = runs(mask[first:])
    pauses = [(first + a, first + b) for (_, a), (b, _) in pairwise(spoken)]
    last = first + spoken[-1][1]
    for start, end in pauses:
        long = LONG_PAUSE if start - first >= ALONE else VERY_LONG_PAUSE
        if end - start >= long and start + padding <= limit:
            return start + padding, False
    if last <= limit:
        return min(last + padding, limit, len(mask)), False
    fitting = [(start, end) for start, end in pauses if start < limit and _cut_in(start, end, padding) <= limit]
    late = [pause for pause in fitting if pause[0] >= first + most // 2]
    if fitting:
        start, end = max(late, key=lambda pause: (pause[1] - pause[0], pause[0])) if late else fitting[-1]
        return _cut_in(start, end, padding), False
    places = np.convolve(energies[first : limit + 1], np.ones(SHORTEST_PAUSE), "same")[most // 2 : most]
    return first + most // 2 + int(places.argmin()), True


def _cut_in(start: int, end: int, padding: int) -> int:
    """Where to cut in a pause: behind the padding, or halfway where both sides want theirs."""
    return start + min(padding, (end - start) // 2)


def _padding(most: int) -> int:
    """Chunks of padding in windows of at most `most`: short ones must not be padding alone."""
    return min(PADDING, most // 4)


class WindowCutter:
    """`speech_windows` for those who are given the blocks one by one.

    Attributes:
        samples: how many were given.
    """

    def __init__(self, longest: float) -> None:
        self.samples = 0
        self._longest = longest
        self._most = max(int(longest * _CHUNKS_A_SECOND), 2)
        self._padding = _padding(self._most)
        self._reach = self._most + _LOOK_AHEAD
        self._activity = VoiceActivity()
        # what is known and not yet given out, from the chunk `_origin` on
        self._samples = np.zeros(0, np.float32)
        self._probabilities = np.zeros(0, np.float32)
        self._origin = 0
        self._inside = False

    def push(self, block: Samples) -> Iterator[Window]:
        """Take more, float32 [samples]; gives the windows that are certain now."""
        self.samples += len(block)
        step = self._reach * CHUNK  # a recording given as one block is not copied whole
        for start in range(0, len(block), step):
            piece = block[start : start + step]
            self._samples = np.concatenate([self._samples, piece])
            self._probabilities = np.concatenate([self._probabilities, self._activity.push(piece)])
            while len(self._probabilities) >= self._reach:
                window = self._next(self._reach, over=False)
                if window:
                    yield window

    def finish(self) -> Iterator[Window]:
        """Nothing follows; gives the windows that are left.

        Raises:
            AudioError: it was too short to be heard.
        """
        if self.samples < MIN_SAMPLES:
            check_length(self.samples)
        self._probabilities = np.concatenate([self._probabilities, self._activity.finish()])
        if not self._origin and len(self._samples) <= self._longest * SAMPLE_RATE:
            yield from self._whole()
            return
        while len(self._probabilities):
            known = min(self._reach, len(self._probabilities))
            window = self._next(known, over=known == len(self._probabilities))
            if window:
                yield window

    def _whole(self) -> Iterator[Window]:
        if self._probabilities.max(initial=0) > PERHAPS:
            spoken = runs(speech_mask(self._probabilities)) or [(0, len(self._probabilities))]
            first, last = spoken[0][0], spoken[-1][1]
            stretches = self._in_samples(spoken)
            probability = float(self._probabilities[first:last].mean())
            yield Window(0, self._samples, (stretches[0][0], stretches[-1][1]), probability, stretches=stretches)

    def _next(self, known: int, *, over: bool) -> Window | None:
        """Take the next window, or silence, off the front; decided by `known` chunks, so that blocks do not matter."""
        probabilities = self._probabilities[:known]
        mask = speech_mask(probabilities, self._inside, over=over)
        spoken = np.flatnonzero(mask)
        if not len(spoken):
            self._drop(known if over else known - self._padding, inside=False)
            return None
        first = max(0, int(spoken[0]) - self._padding)
        if first and not over:  # see as far as from the beginning of a window
            self._drop(first, inside=False)
            return None
        end, amid = choose_end(mask, self._energies(known), first, self._most)
        if over and 0 < known - end < SHORTEST_SPEECH and amid:  # too short a rest to be heard
            end = known - SHORTEST_SPEECH
        heard = [(first + a, first + b) for a, b in runs(mask[first:end])]
        stretches = self._in_samples(heard)
        window = Window(
            start=(self._origin + first) * CHUNK,
            samples=self._samples[first * CHUNK : end * CHUNK].copy(),
            spoken=(stretches[0][0], stretches[-1][1]),
            probability=float(probabilities[heard[0][0] : heard[-1][1]].mean()),
            joined=self._inside and first == 0,
            stretches=stretches,
        )
        self._drop(end, inside=amid)
        return window

    def _in_samples(self, chunks: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Stretches of what is known, from chunks to samples of the recording."""
        origin, held = self._origin, self._held_until
        return tuple(((origin + a) * CHUNK, min((origin + b) * CHUNK, held)) for a, b in chunks)

    @property
    def _held_until(self) -> int:
        return self._origin * CHUNK + len(self._samples)

    def _energies(self, known: int) -> NDArray[np.float64]:
        wave = self._samples[: known * CHUNK].astype(np.float64)
        return np.add.reduceat(wave**2, np.arange(0, len(wave), CHUNK))

    def _drop(self, chunks: int, *, inside: bool) -> None:
        self._samples, self._probabilities = self._samples[chunks * CHUNK :], self._probabilities[chunks:]
        self._origin += chunks
        self._inside = inside
