"""Writing down what is said in recordings of any length, with a model in this process."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.reply import Reply, answer_all
from qwen2_audio.longform.listening import Heard, Question, listen
from qwen2_audio.longform.segments import Segment, join_texts
from qwen2_audio.processing.audio import stream_audio
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.speech_windows import Window, speech_windows

_ROUNDED = 0.01
"""Seconds that a stretch may end behind its recording: the times of annotations are rounded."""


@dataclass(frozen=True, slots=True)
class Transcript(Reply):
    """What is said in a recording: a `Reply` whose text is that of its segments.

    Attributes:
        segments: what was said when, in order; () where nobody speaks.
    """

    segments: tuple[Segment, ...] = ()

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Transcript:
        """The segments of one recording as one answer."""
        return cls(
            join_texts(segment.text for segment in segments),
            "length" if any(segment.finish_reason == "length" for segment in segments) else "stop",
            tuple(token for segment in segments for token in segment.tokens),
            sum(segment.prompt_tokens for segment in segments),
            tuple(segments),
        )


@dataclass(frozen=True, slots=True)
class Transcriber:
    """How one checkpoint transcribes.

    Attributes:
        longest: seconds of the longest window that it transcribes well.
    """

    engine: Engine
    processor: Processor
    longest: float
    question: Question

    def transcribe(self, recordings: Sequence[Iterable[NDArray[np.float32]]]) -> list[Transcript]:
        """What is said in each of several recordings, given as blocks of float32 [samples] at 16 kHz; windows together."""
        found: list[list[Segment]] = [[] for _ in recordings]
        for number, segment in self._listen(recordings):
            found[number].append(segment)
        return [Transcript.of(segments) for segments in found]

    def segments(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Segment]:
        """What is said in one recording, as it comes; held in memory are the windows that are worked on together."""
        return (segment for _, segment in self._listen([blocks]))

    def _listen(self, recordings: Sequence[Iterable[NDArray[np.float32]]]) -> Iterator[tuple[int, Segment]]:
        windows = (
            (number, window)
            for number, blocks in enumerate(recordings)
            for window in speech_windows(blocks, self.longest)
        )
        return listen(windows, self.question, self._hear)

    def _hear(self, windows: Sequence[Window]) -> list[Heard]:
        replies = answer_all(self.engine, [self._request(window) for window in windows])
        return [Heard(reply.text, reply.finish_reason, reply.tokens, reply.prompt_tokens) for reply in replies]

    def _request(self, window: Window) -> Request:
        prompt = self.processor.prepare(self.question.conversation(window))
        return Request(prompt.ids, prompt.clips, self.question.options_for(window))


def blocks_of(part: AudioPart) -> Iterator[NDArray[np.float32]]:
    """A recording, or the stretch of it that the part names, as blocks of float32 [samples] at 16 kHz.

    Nothing is held but the block that is worked on, and nothing is decoded behind the stretch.

    Raises:
        AudioError: as `stream_audio`; or, perhaps after some blocks, the stretch does not lie inside the recording.
    """
    end = math.inf if part.end is None else part.end
    if not 0 <= part.start < end:
        raise AudioError(f"there is no stretch from {part.start} to {part.end} s in any recording; correct its times")
    first = round(part.start * SAMPLE_RATE)
    last = round(end * SAMPLE_RATE) if math.isfinite(end) else sys.maxsize
    at = 0
    for block in stream_audio(part.source):
        inside = block[max(first - at, 0) : max(last - at, 0)]
        at += len(block)
        if len(inside):
            yield inside
        if at >= last:
            return
    seconds = at / SAMPLE_RATE
    if part.start >= seconds if part.end is None else end > seconds + _ROUNDED:
        raise AudioError(f"there is no stretch from {part.start} to {part.end} s in a recording of {seconds:.2f} s")
